"""The GPU's runner, its kernels in Triton's interpreter: whole requests against the runner of a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.engine import load
from octavo.runner import cuda, shared_prefix
from octavo.runner.cuda import CudaRunner
from octavo.runner.prefix_groups import SharingCost
from octavo.runner.step_graphs import Captured, Size, StepGraphs
from tests.tiny_models import SHAPE, make_tiny_llama

OPTIONS = {"skip_tokenizer_init": True, "max_num_seqs": 8, "num_gpu_blocks_override": 40, "block_size": 16}
OPTIONS |= {"device": "cpu", "swap_space": 0}
VOCABULARY = SHAPE["vocab_size"]


class Passed:
    """An event on a device that does everything at once."""

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Replayed:
    """A graph whose replay launches its step."""

    def __init__(self, size: Size, step: Callable[[Size], torch.Tensor], logits: torch.Tensor, used: list[Size]):
        self._size, self._step, self._logits, self._used = size, step, logits, used

    def replay(self) -> None:
        self._used.append(self._size)
        self._logits.copy_(self._step(self._size))


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> list[Size]:
    """Have engines take the GPU's runner, with steps as graphs; lists the sizes of the graphs that were replayed."""
    if device.type == "cuda":
        pytest.skip("this is what benchmarks/gpu_check.py does on a GPU")
    used: list[Size] = []

    def build(
        model: Any, config: Any, options: Any, memory: Any, kv_dtype: Any, page_size: int, device: Any, limits: Any
    ) -> CudaRunner:
        shape = (memory.num_pages, config.num_key_value_heads, page_size, config.head_dim)
        caches = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(config.num_hidden_layers)]
        table = load.cos_sin_table(config.rope, config.head_dim, memory.max_model_len, config.max_position_embeddings)
        return load.cuda_runner(model, config, options, memory, caches, table, limits)

    def capture(self: StepGraphs, step: Callable[[Size], torch.Tensor], report: Callable[[float], None]) -> None:
        for size in self.sizes():
            logits = torch.empty(size.samples, VOCABULARY)
            graph: Any = Replayed(size, step, logits, used)
            self.add(Captured(size, graph, logits))

    monkeypatch.setattr(cuda, "tuning", lambda *_: {"tile": 16, "num_programs": 6})
    monkeypatch.setattr(shared_prefix, "shared_prefix_tuning", lambda: {"tile": 16, "num_programs": 6})
    monkeypatch.setattr(SharingCost, "of", lambda *_: SharingCost(1, 0, 0, 0))  # it pays always
    monkeypatch.setattr(StepGraphs, "capture", capture)
    monkeypatch.setattr(CudaRunner, "_run_each_path", lambda self, few: None)  # it takes the interpreter minutes
    monkeypatch.setattr(load, "_build_runner", build)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch.cuda, "Event", Passed)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return used


def generate(folder: Path, **options: Any) -> tuple[list[list[int]], list[float], int]:
    """Tokens of every sample, logprobs of those that want them, and how often a request was preempted."""
    prompts = [[(7 * i + j) % 90 + 3 for j in range(length)] for i, length in enumerate((2, 11, 20, 45))]
    more: list[dict[str, Any]] = [{}, {"n": 2, "prompt_logprobs": 0}, {"logprobs": 2}, {"n": 2}]
    params = [
        SamplingParams(temperature=0.8 * (i % 2), seed=i, max_tokens=3 + 4 * i, ignore_eos=True, **fields)
        for i, fields in enumerate(more)
    ]
    with LLM(str(folder), **(OPTIONS | options)) as llm:
        results = llm.generate(prompts, params, use_tqdm=False)
        preemptions = llm.stats().num_preemptions
    entries = [*(results[1].prompt_logprobs or [])[1:], *(results[2].outputs[0].logprobs or [])]
    assert len(entries) == 10 + 11
    tokens = [out.token_ids for result in results for out in result.outputs]
    return tokens, [entry.logprob for entry in entries if entry is not None], preemptions


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_batched_tokens": 32},
        {"max_num_batched_tokens": 32, "num_gpu_blocks_override": 7},
        {"max_num_batched_tokens": 32, "batch_invariant": True},
        {"max_num_batched_tokens": 48, "enforce_eager": True},
    ],
    ids=["chunks", "preemption", "batch invariant", "eager"],
)
def test_requests_get_the_tokens_that_a_cpu_gives_them(
    options: dict[str, Any], tmp_path: Path, used: list[Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny_llama(tmp_path / "model", tokenizer=False)
    tokens, logprobs, preemptions = generate(folder, **options)
    monkeypatch.undo()
    expected = generate(folder, **options)
    assert tokens == expected[0]
    assert logprobs == pytest.approx(expected[1], abs=1e-4)
    assert (preemptions > 0) == ("num_gpu_blocks_override" in options)
    eager = "enforce_eager" in options
    assert bool(used) != eager
    assert eager or {size.single for size in used} == {True, False}


def ask_after_the_same_words(folder: Path) -> list[list[int]]:
    """Three requests go on from what a first one left in the cache, beside a long one of another kind."""
    common = [(11 * j) % 80 + 3 for j in range(48)]
    prompts = [common + [i + 5] * (i + 1) for i in range(3)] + [[(5 * j) % 70 + 9 for j in range(200)]]
    with LLM(str(folder), **OPTIONS, max_num_batched_tokens=128) as llm:
        llm.generate(common, SamplingParams(temperature=0, max_tokens=2, ignore_eos=True), use_tqdm=False)
        params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
        return [result.outputs[0].token_ids for result in llm.generate(prompts, params, use_tqdm=False)]


def test_rows_share_pages_beside_a_prompt(tmp_path: Path, used: list[Size], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_tiny_llama(tmp_path / "model", tokenizer=False)
    found = ask_after_the_same_words(folder)
    monkeypatch.undo()
    assert found == ask_after_the_same_words(folder)
    assert {(size.shared, size.single) for size in used} >= {(True, False), (True, True), (False, False)}
