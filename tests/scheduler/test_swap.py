"""Preempted sequences go on from the pages that host memory kept, and are computed anew where it kept none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.plan import StepPlan
from octavo.request import EngineRequest, SamplingParams
from octavo.scheduler import Scheduler
from octavo.scheduler.sequence import Sequence, make_group
from octavo.scheduler.swap import Swap
from tests.scheduler.driver import Driver, alone


def crowd(**config: Any) -> tuple[Driver, list[EngineRequest]]:
    """Three requests that fit together only while they are short, of which one has just been preempted."""
    driver = Driver(**{"num_host_slots": 50, "num_pages": 20, "max_num_batched_tokens": 64, **config})
    prompts = [[handle] * 15 + [handle + 7] for handle in range(3)]
    requests = [driver.add(prompt, handle=handle, max_tokens=30) for handle, prompt in enumerate(prompts)]
    while driver.scheduler.stats().num_preemptions == 0:
        driver.step()
    return driver, requests


def tokens_computed(plans: list[StepPlan]) -> int:
    return sum(plan.num_tokens for plan in plans)


@pytest.mark.parametrize("run_ahead", [True, False])
@pytest.mark.parametrize("caching", [True, False])
def test_nothing_but_the_token_in_flight_is_computed_again(run_ahead: bool, caching: bool) -> None:
    computed = {}
    for slots in (0, 50):
        driver, requests = crowd(num_host_slots=slots, async_scheduling=run_ahead, enable_prefix_caching=caching)
        got = driver.run()
        assert [got[r.handle].tokens for r in requests] == [alone(r).tokens for r in requests]
        computed[slots] = tokens_computed(driver.plans)
        preemptions = driver.scheduler.stats().num_preemptions
    needed = sum(16 + 30 - 1 for _ in requests)
    assert needed + run_ahead <= computed[50] <= needed + run_ahead * preemptions
    assert caching or computed[0] > computed[50] + 16


def test_a_copy_to_the_host_is_in_the_plan_that_gives_its_pages_away() -> None:
    driver, _ = crowd()
    out = driver.plans[-1].swap_out
    assert len(out) == driver.scheduler.stats().swapped_out_pages >= 4
    assert set(driver.plans[-1].block_pages.tolist()) & set(out[:, 0].tolist())
    assert not any(len(plan.swap_out) or len(plan.swap_in) for plan in driver.plans[:-1])


def test_what_the_prefix_cache_still_has_is_not_copied_back() -> None:
    driver, requests = crowd()
    out = driver.scheduler.stats().swapped_out_pages
    driver.scheduler.abort(0)
    driver.scheduler.abort(1)
    driver.run()
    stats = driver.scheduler.stats()
    assert 0 < stats.swapped_in_pages < out
    assert driver.got[2].tokens == alone(requests[2]).tokens


def test_pages_that_came_back_are_found_by_others() -> None:
    driver, requests = crowd()
    driver.run()
    said = requests[2].prompt_token_ids + driver.got[2].tokens[0]
    driver.add(said, handle=9)
    driver.run()
    assert driver.got[9].cached >= len(said) - 1 - driver.config.page_size


def test_generated_pages_are_found_after_a_preemption_without_slots() -> None:
    driver = Driver(num_pages=18, max_num_batched_tokens=64)
    driver.add([1] * 16, handle=0, max_tokens=40)
    driver.add([2] * 8, handle=1, max_tokens=40)
    while driver.scheduler.stats().num_preemptions == 0:
        driver.step()
    waiting = driver.scheduler._queue.head()
    assert waiting is not None and len(waiting.tokens) > 12
    full = (len(waiting.tokens) - 1) // 4
    assert len(driver.scheduler.pool.find(waiting.extend_digests(waiting.tokens, full, 4))) >= full - 1


@pytest.mark.parametrize("index", [None, 0])
def test_abort_gives_the_slots_back(index: int | None) -> None:
    driver, _ = crowd()
    swap = driver.scheduler._swap
    (victim,) = swap._saved
    driver.scheduler.abort(victim.request.handle, index)
    driver.scheduler.check()
    assert len(swap._free) == 50
    driver.run()


def test_slots_that_come_late_are_used_when_they_are_there() -> None:
    driver = Driver(num_pages=20, max_num_batched_tokens=64, num_host_slots=50)
    ready = 0
    driver.scheduler = Scheduler(driver.config, lambda: ready)
    requests = [driver.add([handle] * 16, handle=handle, max_tokens=30) for handle in range(6)]
    while driver.scheduler.stats().num_preemptions == 0:
        driver.step()
    assert driver.scheduler.stats().swapped_out_pages == 0
    ready = 9
    got = driver.run()
    stats = driver.scheduler.stats()
    assert 0 < stats.swapped_in_pages <= stats.swapped_out_pages
    assert max(int(plan.swap_out[:, 1].max(initial=0)) for plan in driver.plans) < 9
    assert [got[r.handle].tokens for r in requests] == [alone(r).tokens for r in requests]


# -- by itself ---------------------------------------------------------------------------------------------------------


def sequence_of(length: int, settled: int, **params: Any) -> Sequence:
    request = EngineRequest(
        handle=0, request_id="0", prompt_token_ids=list(range(length)), params=SamplingParams(**params)
    )
    (sequence,) = make_group(request, (0.0, 1.0), 64).sequences
    sequence.settled = settled
    return sequence


def empty_plan() -> StepPlan:
    none, flags = np.empty(0, np.int32), np.empty(0, np.bool_)
    return StepPlan(0, none, none, none, flags, flags, none)


@pytest.mark.parametrize(
    ("length", "settled", "slots", "saved"),
    [
        (17, 16, 9, 16),
        (17, 17, 9, 16),  # the last known token is computed again
        (17, 13, 9, 13),  # a page may be kept in part
        (17, 0, 9, 0),  # nothing has come back from the device yet
        (9, 8, 9, 0),  # two pages are not worth it
        (40, 39, 4, 16),  # as far as slots are free
        (40, 39, 2, 0),
    ],
)
def test_how_much_is_saved(length: int, settled: int, slots: int, saved: int) -> None:
    swap, sequence = Swap(lambda: slots, 4), sequence_of(length, settled)
    swap.save(sequence, list(range(100, 110)))
    assert swap.restore(sequence, list(range(200, 210)), 0) == saved
    plan = swap.add_copies(empty_plan())
    assert plan.swap_out[:, 0].tolist() == list(range(100, 100 + -(-saved // 4)))
    assert plan.swap_in[:, 0].tolist() == list(range(200, 200 + -(-saved // 4)))
    assert plan.swap_in[:, 1].tolist() == plan.swap_out[:, 1].tolist()
    swap.check(idle=True)


def test_owed_prompt_logprobs_need_every_token_computed() -> None:
    swap, sequence = Swap(lambda: 9, 4), sequence_of(20, 19, prompt_logprobs=1)
    swap.save(sequence, list(range(5)))
    assert swap.restore(sequence, list(range(5)), 0) == 0


def test_a_copy_that_nobody_awaits_any_more_is_not_made() -> None:
    """Its slots may be another's in the same plan."""
    swap, first, second = Swap(lambda: 5, 4), sequence_of(20, 19), sequence_of(20, 19)
    swap.save(first, [1, 2, 3, 4, 5])
    swap.drop(first)
    swap.save(second, [6, 7, 8, 9, 10])
    out = swap.add_copies(empty_plan()).swap_out
    assert out[:, 0].tolist() == [6, 7, 8, 9, 10] and sorted(out[:, 1].tolist()) == [0, 1, 2, 3, 4]


def test_the_check_sees_lost_slots_and_owners_that_do_not_wait() -> None:
    swap, sequence = Swap(lambda: 9, 4), sequence_of(20, 19)
    swap.save(sequence, list(range(5)))
    with pytest.raises(RuntimeError, match="nothing is open"):
        swap.check(idle=True)
    swap._free.pop()
    with pytest.raises(RuntimeError, match="lost"):
        swap.check(idle=False)
