"""24 requests, some with grammars, through a pool that is too small: each answer equals the same request alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from octavo import LLM, SamplingParams, StructuredOutputs
from octavo.grammar.structured import from_json_schema
from tests.grammar.schemas import random_schema


def requests(seed: int) -> list[tuple[str, SamplingParams]]:
    rng = random.Random(seed)
    made = []
    for i in range(24):
        spec = rng.choice(
            [
                None,
                from_json_schema(random_schema(rng), any_whitespace=False),
                StructuredOutputs(regex=r"[a-f]{5,40}\.\d+"),
                StructuredOutputs(choice=("a rather long answer", "a rather longer answer")),
            ]
        )
        params = SamplingParams(
            temperature=rng.choice([0.0, 1.0]),
            seed=i,
            n=rng.choice([1, 1, 2]),
            max_tokens=rng.randint(5, 60),
            min_tokens=rng.choice([0, 0, 5]),
            frequency_penalty=rng.choice([0.0, 0.0, 0.5]),
            logprobs=rng.choice([None, None, 1]),
            stop=rng.choice([(), ("e",)]),
            ignore_eos=rng.random() < 0.3,
            structured_outputs=spec,
        )
        made.append(("shared beginning of all prompts " * rng.randint(0, 2) + f"{i}", params))
    return made


@pytest.mark.parametrize("ahead", [True, False])
def test_a_mixed_batch_answers_as_each_request_alone(tiny_folder: Path, tiny_llm: LLM, ahead: bool) -> None:
    asked = requests(7)
    alone = [tiny_llm.generate(prompt, params, use_tqdm=False)[0].outputs for prompt, params in asked]
    options = {"num_gpu_blocks_override": 40, "block_size": 8, "max_num_seqs": 12, "max_num_batched_tokens": 32}
    with LLM(str(tiny_folder), max_model_len=256, threads=1, async_scheduling=ahead, **options) as llm:
        together = llm.generate([p for p, _ in asked], [p for _, p in asked], use_tqdm=False)
        stats = llm.stats()
    for one, many in zip(alone, together, strict=True):
        assert [(s.token_ids, s.text, s.finish_reason) for s in one] == [
            (s.token_ids, s.text, s.finish_reason) for s in many.outputs
        ]
    assert stats.num_preemptions > 3 and stats.jump_tokens > 20 and stats.prefix_hits > 0
    assert stats.num_free_pages == stats.num_pages


def test_guided_requests_that_came_apart_are_computed_together(tiny_folder: Path) -> None:
    """While both run, a step has both of them: alternating, each would take twice as long."""
    params = SamplingParams(
        temperature=1.0,
        max_tokens=60,
        ignore_eos=True,
        logprobs=0,
        structured_outputs=StructuredOutputs(regex="[a-z]*"),
    )
    with LLM(str(tiny_folder), max_model_len=256, threads=1) as llm:
        engine, inputs = llm._engine, llm._frontend.inputs
        first, second = (inputs.completion("hello", params, request_id=f"{i}", handle=i) for i in (1, 2))
        tokens: list[list[int]] = []

        def step_until(count: int) -> None:
            while sum(map(len, tokens)) < count:
                outputs = engine.step()
                if outputs is not None:
                    tokens.append(outputs.handles)

        engine.add(first)
        step_until(5)
        engine.add(second)
        step_until(120)
    both = [handles for handles in tokens if set(handles) == {1, 2}]
    assert len(both) >= 50 and len(tokens) <= 70
