"""Beams of a real forward pass against transformers' own, token by token."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import LLM, BeamSearchParams, SamplingParams
from tests.tiny_models import make_tiny_llama

PAD = 319
PROMPTS = [
    "The capital of France is",
    "Once upon a time, there was a",
    "def fibonacci(n):\n    ",
    "The three primary colours are",
    "In 1969, the first man",
    "Question: What is the boiling point of water?\nAnswer:",
    "Dear Sir or Madam,\n\nI am writing to",
    "E = mc^2 is a formula by",
]


def theirs(model: Any, prompt: list[int], params: BeamSearchParams, eos: list[int]) -> tuple[list[list[int]], Any]:
    """transformers' answers, without padding, and their scores."""
    with torch.inference_mode():
        found = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=params.beam_width,
            num_return_sequences=params.beam_width,
            do_sample=False,
            max_new_tokens=params.max_tokens,
            length_penalty=params.length_penalty,
            early_stopping=params.early_stopping,
            eos_token_id=eos,
            pad_token_id=PAD,
            return_dict_in_generate=True,
            output_scores=True,
        )
    answers = []
    for row in found.sequences.tolist():
        answer = row[len(prompt) :]
        while answer and answer[-1] == PAD:
            answer.pop()
        answers.append(answer)
    return answers, found.sequences_scores


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


@pytest.mark.parametrize("width", [2, 4, 8])
def test_a_tiny_model(tiny: Path, width: int) -> None:
    """All requests at once, in a pool that makes them preempt each other, with plain requests between them."""
    from transformers import AutoModelForCausalLM

    oracle = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    rng = random.Random(width)
    eos = [1, *rng.sample(range(5, 300), 40)]
    prompts = [[rng.randrange(5, 300) for _ in range(rng.randint(3, 30))] for _ in range(6)]
    params = [
        BeamSearchParams(
            beam_width=width,
            max_tokens=rng.randint(4, 16),
            length_penalty=rng.choice([1.0, 0.0, 2.0, -0.5]),
            early_stopping=rng.choice([False, True, "never"]),
            stop_token_ids=tuple(eos),
        )
        for _ in prompts
    ]
    plain = SamplingParams(temperature=0.8, seed=1, max_tokens=20, n=2, ignore_eos=True)
    mixed = [each.sampling_params() for each in params] + [plain] * 6
    pool = {"num_gpu_blocks_override": 8 + 6 * width, "block_size": 4, "max_num_seqs": 4 * width, "max_model_len": 52}
    with LLM(str(tiny), quantization="none", threads=1, **pool) as llm:
        outputs = llm.generate([*prompts, *[p[::-1] for p in prompts]], mixed, use_tqdm=False)
        assert llm.stats().num_preemptions > 0
        alone = llm.generate(prompts[0][::-1], plain, use_tqdm=False)
    assert [o.token_ids for o in outputs[6].outputs] == [o.token_ids for o in alone[0].outputs]
    for prompt, each, output in zip(prompts, params, outputs[:6], strict=True):
        answers, scores = theirs(oracle, prompt, each, eos)
        assert [o.token_ids for o in output.outputs] == answers
        ours = [(o.cumulative_logprob or 0) / len(o.token_ids) ** each.length_penalty for o in output.outputs]
        torch.testing.assert_close(torch.tensor(ours), scores, rtol=1e-3, atol=1e-3)


@pytest.mark.model
def test_the_real_model(smollm2_gguf: Path, smollm2_transformers: Any) -> None:
    """8 prompts by widths 2, 4 and 8, all 24 searches in one batch."""
    cases = [(text, width) for text in PROMPTS for width in (2, 4, 8)]
    kinds: list[dict[str, Any]] = [{}, {"early_stopping": True}, {"length_penalty": 0.0, "early_stopping": "never"}]
    params = [
        BeamSearchParams(beam_width=width, max_tokens=6, **kinds[i // 3 % 3]) for i, (_, width) in enumerate(cases)
    ]
    with LLM(str(smollm2_gguf), quantization="none", max_model_len=256) as llm:
        outputs = llm.beam_search([text for text, _ in cases], params, use_tqdm=False)
        eos = list(llm.tokenizer.eos_token_ids)
        prompts = [llm.tokenizer.encode(text) for text, _ in cases]
        assert outputs[0].sequences[0].text.startswith(PROMPTS[0])
    for prompt, each, output in zip(prompts, params, outputs, strict=True):
        answers, scores = theirs(smollm2_transformers, prompt, each, eos)
        assert [sequence.tokens[len(prompt) :] for sequence in output.sequences] == answers
        torch.testing.assert_close(torch.tensor([s.score for s in output.sequences]), scores, rtol=0, atol=2e-3)


def test_prompts_come_in_mappings_too(tiny: Path) -> None:
    params = BeamSearchParams(beam_width=2, max_tokens=4)
    with LLM(str(tiny), quantization="none", threads=1) as llm:
        ids = llm.tokenizer.encode("abc")
        given = [{"prompt": "abc"}, {"prompt_token_ids": ids}, "abc", ids]
        results = llm.beam_search(given, params, use_tqdm=False)
        (single,) = llm.beam_search({"prompt": "abc"}, params, use_tqdm=False)
    for result in results:
        assert [s.tokens for s in result.sequences] == [s.tokens for s in single.sequences]
        assert result.sequences[0].text == single.sequences[0].text and single.sequences[0].text.startswith("abc")
    scores = [sequence.score for sequence in single.sequences]
    assert scores == sorted(scores, reverse=True)
