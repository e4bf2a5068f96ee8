"""64 random requests through 32 pages: every output equals the same request alone, whatever is forced on it."""

from __future__ import annotations

import dataclasses
import random

import pytest

from octavo.request import EngineRequest, SamplingParams
from tests.scheduler.driver import VOCAB, Driver, alone


def random_requests(rng: random.Random, count: int = 64) -> list[EngineRequest]:
    prefixes = [[rng.randrange(VOCAB) for _ in range(length)] for length in (8, 13, 21)]
    requests = []
    for handle in range(count):
        prompt = (rng.choice([*prefixes, []]) + [rng.randrange(VOCAB) for _ in range(rng.randint(1, 20))])[:40]
        params = SamplingParams(
            n=rng.choice([1, 1, 1, 2, 4]),
            max_tokens=rng.randint(1, 22),
            min_tokens=rng.choice([0, 0, 1]),
            seed=rng.getrandbits(62),
            stop_token_ids=tuple(rng.sample(range(VOCAB), rng.choice([0, 2, 12]))),
            ignore_eos=rng.random() < 0.5,
            repetition_penalty=rng.choice([1.0, 1.2]),
            frequency_penalty=rng.choice([0.0, 0.0, 0.5]),
            logprobs=rng.choice([None, 0, 3]),
            prompt_logprobs=rng.choice([None, None, 2]),
        )
        requests.append(
            EngineRequest(
                handle=handle,
                request_id=str(handle),
                prompt_token_ids=prompt,
                params=params,
                eos_token_ids=(7, 8),
                priority=rng.randrange(3),
                cache_salt=rng.choice(["", "", "a"]),
            )
        )
    return requests


def storm(rng: random.Random, driver: Driver) -> None:
    """Requests arrive and are aborted at random; whatever comes must be what each brings alone."""
    requests = random_requests(rng)
    waiting, aborted = list(requests), set()
    while waiting or driver.scheduler.has_work:
        for _ in range(rng.randint(0, 4)):
            if waiting:
                driver.submit(waiting.pop(0))
        if rng.random() < 0.06:
            victim, index = rng.randrange(64), rng.choice([None, None, 0, 1])
            if driver.scheduler.abort(victim, index):
                aborted.add(victim)
        driver.step()
    assert driver.scheduler.stats().num_free_pages == driver.config.num_pages
    for request in requests:
        got, expected = driver.got[request.handle], alone(request)
        if request.handle in aborted:
            for index, tokens in got.tokens.items():
                assert tokens == expected.tokens[index][: len(tokens)]
            continue
        assert got == dataclasses.replace(expected, cached=got.cached), request


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("run_ahead", [True, False])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_batching_changes_nothing(seed: int, run_ahead: bool, policy: str) -> None:
    rng = random.Random(seed)
    driver = Driver(
        policy=policy, async_scheduling=run_ahead, max_num_seqs=12, max_num_batched_tokens=rng.choice([12, 17, 64])
    )
    storm(rng, driver)
    stats = driver.scheduler.stats()
    assert stats.num_preemptions > 0 and stats.prefix_hits > 0 and stats.num_evictions > 0


@pytest.mark.parametrize("num_host_slots", [7, 200])
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("run_ahead", [True, False])
def test_swapping_changes_nothing(num_host_slots: int, caching: bool, run_ahead: bool) -> None:
    driver = Driver(
        num_host_slots=num_host_slots, enable_prefix_caching=caching, async_scheduling=run_ahead, max_num_seqs=12
    )
    storm(random.Random(num_host_slots), driver)
    stats = driver.scheduler.stats()
    assert 0 < stats.swapped_in_pages <= stats.swapped_out_pages


@pytest.mark.parametrize("budget", [1, 2, 5])
@pytest.mark.parametrize("run_ahead", [True, False])
def test_a_budget_of_a_few_tokens_changes_nothing(budget: int, run_ahead: bool) -> None:
    driver = Driver(async_scheduling=run_ahead, max_num_batched_tokens=budget, num_pages=16, max_num_seqs=64)
    storm(random.Random(budget), driver)
    assert max(len(plan.rows) for plan in driver.plans) == budget


@pytest.mark.parametrize("page_size", [1, 16])
def test_the_page_size_changes_nothing(page_size: int) -> None:
    driver = Driver(page_size=page_size, num_pages=-(-80 // page_size), max_num_seqs=10)
    storm(random.Random(page_size), driver)
    assert driver.scheduler.stats().num_preemptions > 0


def test_a_failed_row_ends_its_own_request_only() -> None:
    driver = Driver()
    requests = [driver.add([h, h + 1, h + 2], handle=h, max_tokens=10) for h in range(4)]
    for _ in range(4):
        driver.step()
    driver.runner.fail_rows = {1}
    driver.step()
    driver.step()
    driver.runner.fail_rows = set()
    driver.run()
    failed = [handle for handle, got in driver.got.items() if got.ends[0][0] == "error"]
    assert len(failed) == 1
    for request in requests:
        if request.handle not in failed:
            assert driver.got[request.handle].tokens == alone(request).tokens
    assert driver.scheduler.stats().num_free_pages == 32
