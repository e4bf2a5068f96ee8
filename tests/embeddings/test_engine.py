"""Embeddings through the engine: equal to transformers' pooled hidden states, whatever else is in the batch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.errors import ContextLengthError, InvalidRequestError, RequestFailedError
from octavo.request import EngineRequest
from tests.tiny_models import make_tiny_llama

TEXTS = ["The capital of France is Paris.", "def f(x):\n    return x + 1", "a", "Water boils at 100 degrees. " * 12]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


def pooled(model: Any, ids: list[int], kind: str) -> torch.Tensor:
    with torch.inference_mode():
        hidden = model.model(torch.tensor([ids])).last_hidden_state[0]
    vector = hidden[-1] if kind == "last" else hidden.mean(0)
    return vector / vector.norm()


def lengths(count: int, seed: int, low: int = 1, high: int = 60) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(5, 300) for _ in range(rng.randint(low, high))] for _ in range(count)]


@pytest.mark.parametrize("kind", ["last", "mean"])
def test_equal_to_transformers_on_a_tiny_model(tiny: Path, kind: Any) -> None:
    """In chunks of 16 tokens, beside others of both kinds and beside answers, in a pool too small for all of them."""
    from transformers import AutoModelForCausalLM

    oracle = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    prompts = lengths(16, 3)
    pool = {"num_gpu_blocks_override": 20, "block_size": 4, "max_num_seqs": 8, "max_model_len": 80}
    with LLM(str(tiny), quantization="none", threads=1, max_num_batched_tokens=16, **pool) as llm:
        results = llm.embed(prompts, pooling=kind, use_tqdm=False)
        assert llm.stats().num_free_pages == 20
    for ids, result in zip(prompts, results, strict=True):
        assert result.prompt_token_ids == ids and result.finished
        torch.testing.assert_close(
            torch.tensor(result.outputs.embedding), pooled(oracle, ids, kind), rtol=1e-4, atol=1e-4
        )


def drive(llm: LLM, requests: list[EngineRequest]) -> dict[int, Any]:
    """All at once; returns what each brought, the pool checked after each step."""
    found = {}
    for request in requests:
        llm._add(request, None)
    while len(found) < len(requests):
        for update in llm._step():
            if update.finished:
                found[update.handle] = update.request
        llm._engine.check()
    return found


@pytest.mark.parametrize("run_ahead", [True, False])
def test_a_storm_with_preemptions_changes_nothing(tiny: Path, run_ahead: bool) -> None:
    """Both kinds and answers together, prompts with common beginnings, most of them preempted at some time."""
    rng = random.Random(7)
    heads = lengths(2, 5, 20, 30)
    prompts = [rng.choice([*heads, []]) + tail for tail in lengths(30, 6, 1, 30)]
    pool = {"num_gpu_blocks_override": 24, "block_size": 4, "max_num_seqs": 8, "max_model_len": 96}
    options = {**pool, "quantization": "none", "threads": 1, "async_scheduling": run_ahead}

    def requests(llm: LLM) -> list[EngineRequest]:
        inputs = llm._frontend.inputs
        params = SamplingParams(temperature=0, max_tokens=25, ignore_eos=True)
        made = []
        for handle, prompt in enumerate(prompts):
            names = {"request_id": str(handle), "handle": handle}
            if handle % 3 == 2:
                made.append(inputs.completion(prompt, params, **names))
            else:
                made.append(inputs.embedding(prompt, pooling=("last", "mean")[handle % 3], **names))
        return made

    with LLM(str(tiny), max_num_batched_tokens=12, **options) as llm:
        together = drive(llm, requests(llm))
        stats = llm.stats()
        assert stats.num_preemptions > 0 and stats.prefix_hits > 0
        assert stats.num_free_pages == stats.num_pages and stats.num_running == stats.num_waiting == 0
    with LLM(str(tiny), enable_prefix_caching=False, **options) as llm:
        for request in requests(llm):
            (alone,) = drive(llm, [request]).values()
            got = together[request.handle]
            if request.pooling:
                one, other = (np.frombuffer(each.embedding, np.float32) for each in (got, alone))
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
                assert got.samples[0].token_ids == [] and got.samples[0].finish_reason == "stop"
            else:
                assert got.samples[0].token_ids == alone.samples[0].token_ids


def test_a_prefix_hit_serves_the_last_token_and_not_the_mean(tiny: Path) -> None:
    (prompt,) = lengths(1, 9, 50, 50)
    with LLM(str(tiny), quantization="none", threads=1, block_size=4) as llm:
        first, again = (llm.embed(prompt, use_tqdm=False)[0] for _ in range(2))
        assert (first.num_cached_tokens, again.num_cached_tokens) == (0, 48)
        np.testing.assert_allclose(first.outputs.embedding, again.outputs.embedding, atol=1e-5)
        before = llm.embed(prompt, pooling="mean", use_tqdm=False)[0]
        assert before.num_cached_tokens == 0
        answer = llm.generate([prompt], SamplingParams(max_tokens=2), use_tqdm=False)[0]
        assert answer.num_cached_tokens == 48


def test_dimensions_cut_and_normalise(tiny: Path) -> None:
    with LLM(str(tiny), quantization="none", threads=1) as llm:
        raw = np.array(llm.embed("abc", normalize=False, use_tqdm=False)[0].outputs.embedding)
        whole = np.array(llm.embed("abc", use_tqdm=False)[0].outputs.embedding)
        cut = np.array(llm.embed("abc", dimensions=5, use_tqdm=False)[0].outputs.embedding)
        assert len(raw) == len(whole) == llm.info.hidden_size == 64 and len(cut) == 5
        np.testing.assert_allclose(whole, raw / np.linalg.norm(raw), atol=1e-6)
        np.testing.assert_allclose(cut, raw[:5] / np.linalg.norm(raw[:5]), atol=1e-6)
        for dimensions in (0, 65, -1, True, 2.0):
            with pytest.raises(InvalidRequestError, match="dimensions"):
                llm.embed("abc", dimensions=dimensions, use_tqdm=False)  # type: ignore[arg-type]


def test_a_prompt_may_fill_the_context_and_no_more(tiny: Path) -> None:
    with LLM(str(tiny), quantization="none", threads=1, max_model_len=64) as llm:
        assert len(llm.embed([list(range(5, 69))], use_tqdm=False)[0].prompt_token_ids) == 64
        with pytest.raises(ContextLengthError, match="at most 64 tokens"):
            llm.embed([list(range(5, 70))], use_tqdm=False)
        for bad in ([""], [[]], [[-1]], [[320]]):
            with pytest.raises(InvalidRequestError):
                llm.embed(bad, use_tqdm=False)
        with pytest.raises(InvalidRequestError, match="pooling"):
            llm.embed("abc", pooling="max", use_tqdm=False)  # type: ignore[arg-type]


def test_an_abort_frees_the_pages(tiny: Path) -> None:
    with LLM(str(tiny), quantization="none", threads=1, max_num_batched_tokens=8) as llm:
        request = llm._frontend.inputs.embedding(list(range(5, 65)), request_id="1", handle=1, pooling="mean")
        llm._add(request, None)
        for _ in range(3):
            llm._step()
        llm._abort([1])
        while llm._engine.has_work:
            llm._step()
        llm._engine.check()
        assert llm.stats().num_free_pages == llm.stats().num_pages
        assert len(llm.embed("abc", pooling="mean", use_tqdm=False)) == 1


def test_numbers_that_are_not_finite_fail_their_own_request(tmp_path: Path) -> None:
    """A model whose embedding of token 9 is infinite."""
    from safetensors.torch import load_file, save_file

    folder = make_tiny_llama(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][9] = float("inf")
    save_file(tensors, folder / "model.safetensors")
    with LLM(str(folder), quantization="none", threads=1) as llm:
        names = [{"request_id": str(handle), "handle": handle} for handle in range(3)]
        embedding = llm._frontend.inputs.embedding
        requests = [embedding([7, 8], **names[0]), embedding([7, 9], pooling="mean", **names[1])]
        found = drive(llm, [*requests, embedding([9], **names[2])])
        assert [found[i].samples[0].finish_reason for i in range(3)] == ["stop", "error", "error"]
        assert found[0].embedding and not found[1].embedding
        with pytest.raises(RequestFailedError):
            llm.embed([[9]], use_tqdm=False)


@pytest.mark.model
@pytest.mark.parametrize("kind", ["last", "mean"])
def test_equal_to_transformers_on_the_real_model(smollm2_gguf: Path, smollm2_transformers: Any, kind: Any) -> None:
    with LLM(str(smollm2_gguf), quantization="none", max_model_len=256, max_num_batched_tokens=48) as llm:
        results = llm.embed(TEXTS, pooling=kind, use_tqdm=False)
    for result in results:
        expected = pooled(smollm2_transformers, result.prompt_token_ids, kind)
        torch.testing.assert_close(torch.tensor(result.outputs.embedding), expected, rtol=0, atol=1e-3)
