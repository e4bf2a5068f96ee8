"""Beam search through scheduler and pages, without a model: what it finds, what it holds, and what disturbs it."""

from __future__ import annotations

import dataclasses
import itertools
import random
from typing import Any

import numpy as np
import pytest

from octavo.errors import ContextLengthError, InvalidRequestError
from octavo.kv import page_digests, root_digest
from octavo.request import EngineRequest, SamplingParams
from octavo.scheduler.victim import choose_victim
from tests.beams.fake_beams import BeamDriver, alone, exhaustive
from tests.scheduler.driver import VOCAB

EOS = (7, 8)


def beam_params(rng: random.Random, **fixed: Any) -> SamplingParams:
    options: dict[str, Any] = {
        "n": rng.choice([1, 2, 3, 5]),
        "max_tokens": rng.randint(1, 14),
        "min_tokens": 0,
        "stop_token_ids": tuple(rng.sample(range(VOCAB), rng.choice([0, 3, 9]))),
        "ignore_eos": rng.random() < 0.3,
        "length_penalty": rng.choice([1.0, 0.0, -0.7, 2.0]),
        "early_stopping": rng.choice([False, True, "never"]),
        "logprobs": rng.choice([None, 0, 2]),
        "prompt_logprobs": rng.choice([None, None, 1]),
        "seed": 0,
    }
    options |= fixed
    options["min_tokens"] = min(options["min_tokens"], options["max_tokens"])
    return SamplingParams(**options, use_beam_search=True, temperature=0.0)


def request_of(rng: random.Random, handle: int, params: SamplingParams, prompt: list[int]) -> EngineRequest:
    return EngineRequest(
        handle=handle,
        request_id=str(handle),
        prompt_token_ids=prompt,
        params=params,
        eos_token_ids=EOS,
        priority=rng.randrange(3),
        cache_salt=rng.choice(["", "", "a"]),
    )


@pytest.mark.parametrize("seed", range(40))
def test_the_search_finds_what_its_rule_says(seed: int) -> None:
    rng = random.Random(seed)
    prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 22))]
    request = request_of(rng, 0, beam_params(rng, min_tokens=rng.choice([0, 0, 3])), prompt)
    driver = BeamDriver(async_scheduling=seed % 2 == 0, page_size=rng.choice([1, 4, 16]), num_pages=160)
    driver.submit(request)
    got = driver.run()[0]
    expected = exhaustive(request)
    assert [got.tokens[i] for i in range(request.params.n)] == [tokens for _, tokens in expected]
    for index, (score, tokens) in enumerate(expected):
        assert driver.sums[0, index] / len(tokens) ** request.params.length_penalty == pytest.approx(score, abs=1e-4)
        stops = not request.params.ignore_eos and tokens[-1] in EOS
        told = tokens[-1] if tokens[-1] in request.params.stop_token_ids and not stops else None
        reason = "stop" if stops or told is not None else "length"
        assert got.ends[index] == (reason, told)
    assert driver.scheduler.stats().num_free_pages == driver.config.num_pages


def test_logprobs_add_up_and_say_where_a_token_stood() -> None:
    driver = BeamDriver()
    driver.beams([1, 2, 3], 3, max_tokens=6, logprobs=2)
    got = driver.run()[0]
    for index in range(3):
        entries = got.logprobs[index]
        assert [entry.token_id for entry in entries] == got.tokens[index]
        assert sum(entry.logprob for entry in entries) == pytest.approx(driver.sums[0, index], abs=1e-5)
        for entry in entries:
            assert len(entry.top_ids) == 2
            if entry.rank <= 2:
                assert entry.top_ids[entry.rank - 1] == entry.token_id
                assert entry.top_logprobs[entry.rank - 1] == entry.logprob


def test_nothing_is_told_before_the_end() -> None:
    driver = BeamDriver()
    driver.beams([1, 2, 3], 4, max_tokens=9)
    while driver.scheduler.has_work:
        outputs = driver.step()
        if outputs is not None and outputs.tokens:
            assert len(outputs.finished) == 4 and not driver.scheduler.has_work
    assert len(driver.got[0].ends) == 4


def test_beams_share_the_prompt_and_what_they_agree_on() -> None:
    """8 beams of 40 + 16 tokens by themselves hold 13 pages each before the last token, with 4 tokens a page."""
    driver = BeamDriver(num_pages=200, max_num_seqs=8)
    driver.beams(list(range(40)), 8, max_tokens=16, ignore_eos=True)
    driver.run()
    assert driver.most_pages < 10 + 8 * 4 + 1
    independent = BeamDriver(num_pages=200, max_num_seqs=8, enable_prefix_caching=False)
    for handle in range(8):
        independent.add(list(range(40)), handle, max_tokens=16, seed=handle)
    independent.run()
    assert independent.most_pages >= 8 * 13


def storm(driver: BeamDriver, seed: int, count: int = 24, aborts: float = 0.05) -> None:
    rng = random.Random(seed)
    prefixes = [[rng.randrange(VOCAB) for _ in range(length)] for length in (8, 13, 18)]
    requests = []
    for handle in range(count):
        prompt = rng.choice([*prefixes, []]) + [rng.randrange(VOCAB) for _ in range(rng.randint(1, 9))]
        if rng.random() < 0.6:
            params = beam_params(rng)
        else:
            params = SamplingParams(n=rng.choice([1, 2]), max_tokens=rng.randint(1, 18), seed=handle)
        requests.append(request_of(rng, handle, params, prompt))
    waiting, aborted = list(requests), set()
    for _ in range(5000):
        if not waiting and not driver.scheduler.has_work:
            break
        for _ in range(rng.randint(0, 4)):
            if waiting and len(driver.scheduler._queue) < 20:
                driver.submit(waiting.pop(0))
        if rng.random() < aborts:
            victim = rng.randrange(count)
            if driver.scheduler.abort(victim):
                aborted.add(victim)
        driver.step()
    assert not driver.scheduler.has_work, "the work does not come to an end"
    stats = driver.scheduler.stats()
    assert stats.num_free_pages == driver.config.num_pages and stats.num_running == stats.num_waiting == 0
    for request in requests:
        if request.handle not in aborted:
            got, expected = driver.got[request.handle], alone(request)
            assert got == dataclasses.replace(expected, cached=got.cached), request


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("run_ahead", "policy"), list(itertools.product([True, False], ["fcfs", "priority"])))
def test_a_storm_with_preemptions_changes_nothing(seed: int, run_ahead: bool, policy: str) -> None:
    driver = BeamDriver(
        async_scheduling=run_ahead,
        policy=policy,
        num_pages=32,
        max_num_seqs=16,
        max_num_batched_tokens=[16, 24, 64][seed % 3],
        enable_prefix_caching=seed % 2 == 0,
    )
    storm(driver, seed)
    assert driver.scheduler.stats().num_preemptions > 0


@pytest.mark.parametrize("page_size", [1, 3])
def test_other_page_sizes_change_nothing(page_size: int) -> None:
    storm(BeamDriver(page_size=page_size, num_pages=-(-120 // page_size), max_num_seqs=7), 50 + page_size)


def test_searches_that_fill_the_rows_take_turns() -> None:
    """Each wants all rows: none may hold some and wait for the rest."""
    driver = BeamDriver(max_num_seqs=4, num_pages=64)
    requests = [driver.beams([h, 1, 2], 4, h, max_tokens=5) for h in range(5)]
    driver.run()
    for request in requests:
        assert driver.got[request.handle].tokens == alone(request).tokens


def test_an_abort_at_any_moment_frees_everything() -> None:
    for steps in range(12):
        driver = BeamDriver(num_pages=24)
        driver.beams([1, 2, 3, 4, 5], 3, max_tokens=6)
        other = driver.add([9, 9, 1], 1)
        for _ in range(steps):
            driver.step()
        assert not driver.scheduler.abort(0, 1), "one beam alone cannot be taken out"
        driver.scheduler.abort(0)
        driver.run()
        assert driver.got[1].tokens == alone(other).tokens
        assert driver.scheduler.stats().num_free_pages == 24


def test_a_row_that_fails_ends_its_search_only() -> None:
    driver = BeamDriver()
    driver.beams([1, 2, 3], 3, max_tokens=10)
    other = driver.add([5, 6], 1, max_tokens=12)
    for _ in range(5):
        driver.step()
    beam = next(s for s in driver.scheduler._running if s.request.handle == 0)
    driver.runner.fail_rows = {beam.row}
    while len(driver.got[0].ends) < 3:
        driver.step()
    driver.runner.fail_rows = set()
    driver.run()
    assert {reason for reason, _ in driver.got[0].ends.values()} == {"error"}
    assert driver.got[1].tokens == alone(other).tokens


@pytest.mark.parametrize(("page_size", "num_pages"), [(1, 96), (2, 52), (4, 28), (4, 400)])
def test_pages_of_beams_are_named_after_what_they_hold(page_size: int, num_pages: int) -> None:
    """The name is a digest of all of a text up to the page's end, and some beam really had that text."""
    driver = BeamDriver(num_pages=num_pages, page_size=page_size, max_num_seqs=8)
    driver.beams([3, 1, 4, 1, 5], 4, max_tokens=18, ignore_eos=True)
    driver.run()
    names = {}
    for text in driver.runner.texts:
        for i, digest in enumerate(page_digests(root_digest("", "", ""), np.array(text, np.int32), page_size)):
            names[digest] = list(text[i * page_size : (i + 1) * page_size])
    index = driver.scheduler.pool._index
    assert len(index) > 5
    for digest, page in index.items():
        assert names[digest] == driver.runner.pages[page].tolist()


def test_the_first_search_is_not_the_victim() -> None:
    """Though another of its beams would be the cheapest to bring back."""
    driver = BeamDriver(num_pages=100, enable_prefix_caching=False)
    driver.beams([1, 2], 3, 0, max_tokens=20, ignore_eos=True)
    driver.add(list(range(30)), 1, max_tokens=20)
    for _ in range(8):
        driver.step()
    scheduler = driver.scheduler
    *beams, plain = scheduler._running
    assert {beam.request.handle for beam in beams} == {0} and len(beams) > 1 and plain.request.handle == 1
    assert choose_victim([*beams, plain], scheduler._rows, scheduler.pool, 1) is plain
    with pytest.raises(RuntimeError, match="only sequence"):
        choose_victim(beams, scheduler._rows, scheduler.pool, 1)
    assert choose_victim([plain, *beams], scheduler._rows, scheduler.pool, 1) in beams


@pytest.mark.parametrize("min_tokens", [1, 2, 3, 4])
def test_no_answer_is_shorter_than_min_tokens(min_tokens: int) -> None:
    """Nearly every token stops, so that answers end as soon as they may."""
    driver = BeamDriver()
    request = driver.beams([1, 2, 3], 3, max_tokens=6, min_tokens=min_tokens, stop_token_ids=tuple(range(3, VOCAB)))
    got = driver.run()[0]
    assert [got.tokens[i] for i in range(3)] == [tokens for _, tokens in exhaustive(request)]
    assert min(len(tokens) for tokens in got.tokens.values()) > min_tokens


def test_what_can_never_fit_is_refused() -> None:
    driver = BeamDriver(max_num_seqs=4, num_pages=20)
    with pytest.raises(InvalidRequestError, match="n cannot be 5"):
        driver.beams([1], 5)
    with pytest.raises(ContextLengthError, match="may need 24 pages"):
        driver.beams([1], 4, max_tokens=23)
    assert not driver.scheduler.has_work
    driver.beams([1], 4, max_tokens=19)
    driver.run()
    assert len(driver.got[0].ends) == 4
