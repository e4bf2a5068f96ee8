"""Every two features in one storm; every answer as if its request were alone. docs/features.md shows the cells."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from octavo import LLM
from octavo.errors import InvalidRequestError
from octavo.frontend.sample import OpenRequest
from octavo.request import EngineRequest, SamplingParams
from tests.features.features import MAX_MODEL_LEN, PAIRS, Feature, Outcome, params_of, verdict
from tests.features.page import PAGE, page
from tests.tiny_models import make_tiny_llama

PLAIN = SamplingParams(temperature=0.0, max_tokens=26, ignore_eos=True, seed=0)
OFF: dict[str, Any] = {
    "enable_prefix_caching": False,
    "async_scheduling": False,
    "quantization": "none",
    "num_gpu_blocks_override": 300,
    "max_num_batched_tokens": 512,
    "block_size": 4,
    "max_num_seqs": 8,
    "max_model_len": MAX_MODEL_LEN,
    "threads": 1,
}


@dataclass
class Engines:
    """Engines by their options, and what requests brought alone."""

    model: Path
    llms: dict[str, LLM]
    alone: dict[str, OpenRequest]

    def llm(self, *changes: dict[str, Any]) -> LLM:
        options = dict(OFF)
        for each in changes:
            options |= each
        return self.llms.setdefault(repr(options), None) or self._load(options)  # type: ignore[arg-type]

    def _load(self, options: dict[str, Any]) -> LLM:
        llm = self.llms[repr(options)] = LLM(str(self.model), **options)
        return llm

    def solo(self, request: EngineRequest, quantization: str) -> OpenRequest:
        """The request by itself; the same one is run once."""
        key = repr((quantization, request.prompt_token_ids, request.params, request.pooling))
        if key not in self.alone:
            llm = self.llm({"quantization": quantization})
            opened = llm._frontend.outputs.add(request)
            llm._engine.add(request)
            while llm._engine.has_work:
                llm._step()
            self.alone[key] = opened
        return self.alone[key]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    made = Engines(make_tiny_llama(tmp_path_factory.mktemp("tiny") / "model"), {}, {})
    yield made
    for llm in made.llms.values():
        llm.close()


def make_requests(llm: LLM, one: Feature, other: Feature, rng: random.Random) -> list[tuple[EngineRequest, set[str]]]:
    """Requests, each with the names of its features: six or so with them between four plain ones."""
    head = [rng.randrange(5, 250) for _ in range(13)]
    together = verdict(one, other) == "together"
    kinds = [[one, other]] * 6 if together else [[one], [other]] * 4
    made = []
    for handle, kind in enumerate([[], [], *kinds, [], []]):
        prompt = (head if handle % 3 else []) + [rng.randrange(5, 250) for _ in range(rng.randint(1, 8))]
        names: dict[str, Any] = {"request_id": str(handle), "handle": handle, "priority": rng.randrange(3)}
        if any(feature.embeds for feature in kind):
            request = llm._frontend.inputs.embedding(prompt, pooling=("last", "mean")[handle // 2 % 2], **names)
        else:
            featured = any(feature.params for feature in kind)
            params = params_of(kind, rng) if featured else PLAIN
            request = llm._frontend.inputs.completion(prompt, params, **names)
        made.append((request, {feature.name for feature in kind}))
    return made


def storm(
    llm: LLM, requests: list[EngineRequest], rng: random.Random, aborts: bool
) -> tuple[dict[int, Any], set[int], list[int]]:
    """All of them at once. Returns what each brought, which were aborted, and priorities in the order of starting
    (without requests that wait for a grammar first).
    """
    opened, aborted, started = {}, set(), []
    for request in requests:
        llm._engine.add(request)
        opened[request.handle] = llm._frontend.outputs.add(request)
    steps = 0
    while llm._engine.has_work:
        before = {handle for handle, request in opened.items() if request.scheduled_time}
        llm._step()
        llm._engine.check()
        new = [handle for handle, request in opened.items() if request.scheduled_time and handle not in before]
        started += sorted(requests[handle].priority for handle in new if not requests[handle].grammar)
        steps += 1
        if aborts and steps in (3, 6):
            victim = rng.choice([handle for handle, request in opened.items() if request.num_open])
            llm._abort([victim])
            aborted.add(victim)
    return opened, aborted, started


def assert_equal(got: OpenRequest, expected: OpenRequest, tolerance: float) -> None:
    for ours, theirs in zip(got.samples, expected.samples, strict=True):
        assert ours.token_ids == theirs.token_ids and ours.text == theirs.text
        assert (ours.finish_reason, ours.stop_reason) == (theirs.finish_reason, theirs.stop_reason)
        for one, other in zip(ours.logprobs or [], theirs.logprobs or [], strict=True):
            assert one.token_id == other.token_id
            assert one.logprob == pytest.approx(other.logprob, abs=tolerance)
        if theirs.cumulative_logprob is not None:
            assert ours.cumulative_logprob == pytest.approx(theirs.cumulative_logprob, abs=10 * tolerance)
    scored = zip(got.prompt_logprobs or [], expected.prompt_logprobs or [], strict=True)
    for one, other in scored:
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.logprob == pytest.approx(other.logprob, abs=tolerance)
    vectors = [np.frombuffer(each.embedding, np.float32) for each in (got, expected)]
    np.testing.assert_allclose(*vectors, atol=10 * tolerance)


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=[f"{one.name} + {other.name}" for one, other in PAIRS])
def test_both_in_one_storm(engines: Engines, one: Feature, other: Feature) -> None:
    rng = random.Random(zlib.crc32(f"{one.name}+{other.name}".encode()))
    llm = engines.llm(one.config, other.config)
    made = make_requests(llm, one, other, rng)
    requests = [request for request, _ in made]
    before = llm.stats()
    opened, aborted, started = storm(llm, requests, rng, "abort" in (one.name, other.name))
    after = llm.stats()
    assert after.num_free_pages == after.num_pages and after.num_running == after.num_waiting == 0
    counters = ("prefix_hits", "num_preemptions", "swapped_in_pages")
    counted = {name: getattr(after, name) - getattr(before, name) for name in counters}
    stats = msgspec.structs.replace(after, **counted)
    quantization = (OFF | one.config | other.config)["quantization"]
    for request, _ in made:
        if request.handle not in aborted:
            tolerance = 2e-3 if quantization == "none" else 0.1
            assert_equal(opened[request.handle], engines.solo(request, quantization), tolerance)
    for feature in (one, other):
        featured = [opened[r.handle] for r, names in made if feature.name in names and r.handle not in aborted]
        assert featured
        assert feature.seen(Outcome(featured, stats, started, len(aborted))), f"{feature.name} was not at work"


REFUSED = [pair for pair in PAIRS if verdict(*pair) not in ("together", "beside")]


@pytest.mark.parametrize(("one", "other"), REFUSED, ids=[f"{one.name} + {other.name}" for one, other in REFUSED])
def test_what_is_refused_is_refused_with_a_reason(engines: Engines, one: Feature, other: Feature) -> None:
    params = params_of([one, other], random.Random(0))
    with pytest.raises(InvalidRequestError) as caught:
        engines.llm().generate("abc", params, use_tqdm=False)
    assert caught.value.code == verdict(one, other) and caught.value.fix and caught.value.param


def test_the_page_shows_these_cells() -> None:
    assert PAGE.read_text() == page(), "run python -m tests.features.page"
