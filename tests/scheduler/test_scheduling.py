"""What the scheduler promises, one behaviour a test."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from octavo.errors import ConfigError, ContextLengthError, InvalidRequestError, OverloadedError
from octavo.kv import PagePool
from octavo.plan import StepResult
from octavo.request import EngineRequest, SamplingParams
from octavo.scheduler import Scheduler, SchedulerConfig
from octavo.scheduler.rows import Rows
from octavo.scheduler.sequence import make_group
from octavo.scheduler.victim import choose_victim
from tests.scheduler.driver import Driver, alone


def test_prompts_are_chunked_within_the_token_budget() -> None:
    driver = Driver(max_num_batched_tokens=8)
    driver.add(list(range(20)), max_tokens=2)
    driver.run()
    assert [plan.query_lens.tolist() for plan in driver.plans[:3]] == [[8], [8], [4]]
    assert [plan.sample.tolist() for plan in driver.plans[:3]] == [[False], [False], [True]]


def test_decodes_go_before_prompts() -> None:
    driver = Driver(max_num_batched_tokens=8)
    driver.add([1, 2, 3], handle=0, max_tokens=6)
    driver.step()
    driver.add(list(range(20)), handle=1)
    driver.step()
    plan = driver.plans[-1]
    assert plan.query_lens.tolist() == [1, 7]
    assert plan.from_host.tolist() == [False, True]


def test_what_begins_a_sequence_comes_last() -> None:
    """Its keys are all in the step, which a kernel may make use of; whatever has context comes before it."""
    driver = Driver(max_num_batched_tokens=64)
    driver.add(list(range(16)), handle=0, max_tokens=8)
    driver.step()
    driver.step()
    driver.add([50, 51, 52], handle=1)
    driver.add([*range(16), 60, 61], handle=2)  # finds the first's pages
    driver.step()
    plan = driver.plans[-1]
    assert plan.context_lens.tolist()[1:] == [16, 0]
    assert plan.query_lens.tolist() == [1, 2, 3]
    driver.run()


def test_the_second_of_two_equal_prompts_finds_all_but_the_last_token() -> None:
    driver = Driver()
    prompt = list(range(16))
    driver.add(prompt, handle=0)
    driver.run()
    driver.add(prompt, handle=1)
    driver.add([*prompt, 5], handle=2)
    driver.run()
    assert [driver.got[handle].cached for handle in range(3)] == [0, 12, 16]


def test_salts_adapters_and_switched_off_caches_share_nothing() -> None:
    driver = Driver()
    prompt = list(range(16))
    driver.add(prompt, handle=0, cache_salt="a")
    driver.run()
    driver.add(prompt, handle=1, cache_salt="b")
    driver.add(prompt, handle=2, adapter="x")
    driver.add(prompt, handle=3)
    driver.add(prompt, handle=4, cache_salt="a")
    driver.run()
    assert [driver.got[handle].cached for handle in range(5)] == [0, 0, 0, 0, 12]
    off = Driver(enable_prefix_caching=False)
    off.add(prompt, handle=0)
    off.run()
    off.add(prompt, handle=1)
    assert off.run()[1].cached == 0


def test_generated_text_is_found_by_the_next_turn() -> None:
    driver = Driver()
    request = driver.add(list(range(8)), handle=0, max_tokens=9)
    driver.run()
    driver.add(request.prompt_token_ids + driver.got[0].tokens[0], handle=1)
    assert driver.run()[1].cached == 16


def test_prompt_logprobs_read_no_cache() -> None:
    driver = Driver()
    driver.add(list(range(16)), handle=0)
    driver.run()
    driver.add(list(range(16)), handle=1, prompt_logprobs=1)
    got = driver.run()[1]
    assert got.cached == 0
    assert [entry.token_id for entry in got.prompt_logprobs] == list(range(1, 16))


def test_samples_share_the_prompts_full_pages() -> None:
    driver = Driver(num_pages=32)
    request = driver.add(list(range(18)), n=4, max_tokens=2)
    driver.step()
    driver.step()
    assert driver.scheduler.stats().num_running == 4
    owned = 32 - driver.scheduler.stats().num_free_pages
    assert owned == 4 + 4  # four full pages once, and a last one each
    plan = driver.plans[1]
    assert len(plan.copy_pages) == 3 and plan.query_lens.tolist() == [1, 1, 1, 1]
    driver.run()
    assert driver.got[0].tokens == alone(request).tokens
    assert len({tuple(tokens) for tokens in driver.got[0].tokens.values()}) > 1


def test_admission_needs_pages_for_the_whole_prompt() -> None:
    driver = Driver(num_pages=16, max_num_batched_tokens=64)
    driver.add(list(range(40)), handle=0, max_tokens=20)
    driver.add([49] * 30, handle=1)
    driver.step()
    assert driver.scheduler.stats().num_waiting == 1
    driver.run()


@pytest.mark.parametrize("run_ahead", [True, False])
def test_preemption_takes_the_cheapest_and_never_the_oldest(run_ahead: bool) -> None:
    driver = Driver(num_pages=16, max_num_seqs=4, async_scheduling=run_ahead)
    requests = [driver.add([h] * (12 - 3 * h), handle=h, max_tokens=40) for h in range(3)]
    while driver.scheduler.stats().num_preemptions == 0:
        driver.step()
    running = {sequence.request.handle for sequence in driver.scheduler._running}
    assert 0 in running
    got = driver.run()
    for request in requests:
        assert got[request.handle].tokens == alone(request).tokens


def test_priority_decides_who_is_admitted_and_who_is_preempted() -> None:
    driver = Driver(policy="priority", max_num_seqs=1)
    driver.add([1], handle=0, priority=5, max_tokens=3)
    driver.add([2], handle=1, priority=1, max_tokens=3)
    driver.add([3], handle=2, priority=5, max_tokens=3)
    order = []
    while driver.scheduler.has_work:
        outputs = driver.step()
        order += [end.handle for end in outputs.finished] if outputs else []
    assert order == [1, 0, 2]


def test_the_reasons_of_an_end() -> None:
    driver = Driver()
    probe = driver.add([1, 2, 3], handle=0, max_tokens=6)
    text = driver.run()[0].tokens[0]
    cases = {
        "length": ({}, (), ("length", None)),
        "eos": ({}, (text[2],), ("stop", None)),
        "ignored eos": ({"ignore_eos": True}, (text[2],), ("length", None)),
        "stop id": ({"stop_token_ids": (text[2],)}, (), ("stop", text[2])),
    }
    for handle, (options, eos, _) in enumerate(cases.values(), start=1):
        driver.add(probe.prompt_token_ids, handle=handle, max_tokens=6, eos=eos, **options)
    got = driver.run()
    for handle, (_, _, end) in enumerate(cases.values(), start=1):
        assert got[handle].ends[0] == end
        expected = text if end[0] == "length" else text[: text.index(text[2]) + 1]
        assert got[handle].tokens[0] == expected


def test_a_full_context_ends_by_length() -> None:
    driver = Driver(max_model_len=12)
    driver.add([1] * 10, max_tokens=50)
    got = driver.run()[0]
    assert got.ends[0] == ("length", None) and len(got.tokens[0]) == 2


def test_the_queue_is_bounded_and_bad_requests_are_refused() -> None:
    driver = Driver(max_num_queued_reqs=2)
    driver.add([1], handle=0)
    with pytest.raises(InvalidRequestError, match="in use"):
        driver.add([1], handle=0)
    with pytest.raises(ContextLengthError, match="64 tokens; the context holds 64"):
        driver.add([1] * 64, handle=1)
    driver.add([1], handle=2)
    with pytest.raises(OverloadedError):
        driver.add([1], handle=3)
    driver.run()


def test_a_context_that_the_pool_cannot_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not fit 2 pages"):
        SchedulerConfig(max_num_seqs=1, max_num_batched_tokens=8, max_model_len=9, num_pages=2, page_size=4)


@pytest.mark.parametrize("steps", range(6))
def test_an_abort_at_any_point_frees_everything(steps: int) -> None:
    driver = Driver(max_num_batched_tokens=6)
    driver.add(list(range(14)), handle=0, n=3, max_tokens=10)
    driver.add([4, 5], handle=1, max_tokens=10)
    for _ in range(steps):
        driver.step()
    before = sum(map(len, driver.got[0].tokens.values()))
    assert driver.scheduler.abort(0)
    assert not driver.scheduler.abort(0)
    got = driver.run()
    assert sum(map(len, got[0].tokens.values())) == before and not got[0].ends
    assert len(got[1].tokens[0]) == 10
    assert driver.scheduler.stats().num_free_pages == 32


def test_a_steady_step_carries_no_news() -> None:
    driver = Driver(page_size=16, num_pages=8)
    driver.add([1, 2, 3], max_tokens=10)
    for _ in range(4):
        driver.step()
    plan = driver.plans[-1]
    assert plan.new_rows == () and len(plan.block_rows) == len(plan.free_rows) == len(plan.token_ids) == 0


def test_stop_ids_beyond_the_row_tables_columns_still_stop() -> None:
    driver = Driver()
    driver.add([1, 2, 3], handle=0, max_tokens=6)
    text = driver.run()[0].tokens[0]
    others = tuple(token for token in range(50) if token not in text)[:20]
    driver.add([1, 2, 3], handle=1, max_tokens=6, stop_token_ids=(*others, text[2]))
    got = driver.run()[1]
    assert got.ends[0] == ("stop", text[2]) and got.tokens[0] == text[: text.index(text[2]) + 1]


def test_an_id_that_is_both_eos_and_stop_counts_as_eos() -> None:
    driver = Driver()
    driver.add([1, 2, 3], handle=0, max_tokens=6)
    token = driver.run()[0].tokens[0][0]
    driver.add([1, 2, 3], handle=1, eos=(token,), stop_token_ids=(token,))
    driver.add([1, 2, 3], handle=2, eos=(token,), stop_token_ids=(token,), ignore_eos=True)
    got = driver.run()
    assert got[1].ends[0] == ("stop", None) and got[2].ends[0] == ("stop", token)


def test_before_min_tokens_nothing_stops() -> None:
    driver = Driver()
    every = tuple(range(40))  # nearly each id stops
    driver.add([1, 2, 3], handle=0, max_tokens=20, min_tokens=5, stop_token_ids=every, eos=(41,))
    got = driver.run()[0]
    assert len(got.tokens[0]) > 5 and not set(got.tokens[0][:5]) & {*every, 41}
    assert driver.plans[0].new_rows[0].stop_ids == (41, *every)


def test_a_sequence_sure_to_end_by_length_is_not_planned_again() -> None:
    driver = Driver()
    driver.add([1, 2, 3], max_tokens=4)
    driver.run()
    assert sum(plan.sample.sum() for plan in driver.plans) == 4


def test_the_step_after_a_stop_is_dropped() -> None:
    driver = Driver()
    driver.add([1, 2, 3], handle=0, max_tokens=9)
    text = driver.run()[0].tokens[0]
    before = len(driver.plans)
    driver.add([1, 2, 3], handle=1, max_tokens=9, stop_token_ids=(text[0],))
    got = driver.run()[1]
    assert got.tokens[0] == text[:1]
    assert len(driver.plans) - before == 2  # the second ran ahead of the stop


@pytest.mark.parametrize("run_ahead", [True, False])
def test_a_reused_row_gets_no_stale_token(run_ahead: bool) -> None:
    driver = Driver(max_num_seqs=1, async_scheduling=run_ahead)
    driver.add([1, 2, 3], handle=0, max_tokens=9)
    for _ in range(4):
        driver.step()
    request = driver.add([7, 8], handle=1, max_tokens=5)
    driver.scheduler.abort(0)  # its row has a token in flight, and is given away in the next plan
    assert driver.run()[1].tokens == alone(request).tokens
    handover = next(plan for plan in driver.plans if len(plan.free_rows))
    assert handover.new_rows[0].row == handover.free_rows[0] == 0


def test_a_sequence_that_comes_back_brings_what_it_had_generated() -> None:
    driver = Driver(num_pages=16, max_num_seqs=4)
    first = driver.add([1] * 12, handle=0, max_tokens=40)
    second = driver.add([2] * 9, handle=1, max_tokens=30, presence_penalty=0.5)
    got = driver.run()
    assert driver.scheduler.stats().num_preemptions > 0
    again = [new for plan in driver.plans for new in plan.new_rows if new.num_prompt_tokens == 9][1]
    generated = len(again.token_ids) - 9
    assert generated > 0 and again.token_ids.tolist() == [2] * 9 + got[1].tokens[0][:generated]
    assert got[0].tokens == alone(first).tokens and got[1].tokens == alone(second).tokens


def test_none_is_admitted_in_a_step_that_preempts() -> None:
    driver = Driver(num_pages=16, max_num_seqs=6)
    for handle in range(3):
        driver.add([handle] * 15, handle=handle, max_tokens=30)
    preempted = 0
    while driver.scheduler.stats().num_preemptions == 0:
        driver.add([9], handle=10 + len(driver.got), max_tokens=1)  # would always fit
        preempted = len(driver.plans)
        driver.step()
    assert driver.plans[preempted].new_rows == () and len(driver.plans[preempted].free_rows) > 0
    driver.run()


def test_the_victim_gives_the_most_for_the_least() -> None:
    driver = Driver(num_pages=16, max_num_seqs=4, max_num_batched_tokens=64)
    driver.add([1] * 20, handle=0, max_tokens=40)
    driver.add([2] * 4, handle=1, max_tokens=30)  # the cheapest to compute again, but not the last to arrive
    driver.add([3] * 20, handle=2, max_tokens=30)
    while driver.scheduler.stats().num_preemptions == 0:
        driver.step()
    assert {sequence.request.handle for sequence in driver.scheduler._running} == {0, 2}
    driver.run()


def test_a_victim_that_frees_more_of_what_is_needed_may_lose_more() -> None:
    pool, rows = PagePool(8), Rows(4, 64, 4)
    running = []
    for handle, length in enumerate((4, 4, 6)):
        request = EngineRequest(handle=handle, request_id="", prompt_token_ids=[1] * length, params=SamplingParams())
        sequence = make_group(request, (0.0, handle), 64).sequences[0]
        rows.take(sequence, pool.allocate(-(-length // 4)), length)
        running.append(sequence)
    assert choose_victim(running, rows, pool, 1) is running[1]  # 4 tokens lost for a page, against 6
    assert choose_victim(running, rows, pool, 2) is running[2]  # 4 for each page, against 3
    pool.share(rows.pages(running[1].row))
    assert choose_victim(running, rows, pool, 1) is running[2]  # the other would free nothing
    with pytest.raises(RuntimeError, match="the only sequence"):
        choose_victim(running[:1], rows, pool, 1)


def test_under_the_priority_policy_the_least_urgent_is_the_victim() -> None:
    driver = Driver(num_pages=16, max_num_seqs=4, max_num_batched_tokens=64, policy="priority")
    driver.add([1] * 20, handle=0, max_tokens=40, priority=2)
    driver.add([2] * 4, handle=1, max_tokens=30, priority=1)
    driver.add([3] * 4, handle=2, max_tokens=30, priority=1)  # cheaper, but more urgent
    while driver.scheduler.stats().num_preemptions == 0:
        driver.step()
    assert {sequence.request.handle for sequence in driver.scheduler._running} == {1, 2}
    driver.run()


def test_statistics_of_hits_count_each_prompt_once() -> None:
    driver = Driver(num_pages=16, max_num_seqs=4)
    driver.add([1] * 12, handle=0, max_tokens=40)
    driver.add([2] * 9, handle=1, max_tokens=30)
    driver.run()
    stats = driver.scheduler.stats()
    assert stats.num_preemptions > 0
    assert (stats.prefix_queries, stats.prefix_hits, stats.prompt_tokens, stats.generation_tokens) == (21, 0, 21, 70)
    driver.add([1] * 12, handle=2, max_tokens=1)
    driver.run()
    assert driver.scheduler.stats().prefix_queries == 33 and driver.scheduler.stats().num_free_pages == 16


def test_what_a_failed_step_computed_is_not_found_again() -> None:
    driver = Driver()
    driver.add(list(range(16)), handle=0)
    for _ in range(3):
        driver.step()
    driver.runner.fail_rows = {0}
    driver.run()
    driver.runner.fail_rows = set()
    assert driver.got[0].ends[0] == ("error", None)
    driver.add(list(range(16)), handle=1)
    assert driver.run()[1].cached == 0


def test_prompt_logprobs_go_on_where_a_preemption_broke_them_off() -> None:
    driver = Driver(num_pages=16, max_num_batched_tokens=5, max_model_len=60)
    driver.add([1] * 8, handle=0, max_tokens=40)
    driver.step()
    driver.step()
    request = driver.add([30 + i % 3 for i in range(50)], handle=1, max_tokens=2, prompt_logprobs=1)
    while driver.scheduler.stats().num_preemptions == 0:
        driver.step()
    scored = len(driver.got[1].prompt_logprobs)
    got = driver.run()[1]
    assert 0 < scored < 49 and got.prompt_logprobs == alone(request, 60).prompt_logprobs


def test_prompt_logprobs_are_planned_only_where_a_token_follows() -> None:
    driver = Driver(max_num_batched_tokens=5)
    driver.add(list(range(11)), max_tokens=3, prompt_logprobs=0)
    driver.add([4], handle=1, max_tokens=3, prompt_logprobs=0)
    got = driver.run()
    assert [len(entry.targets) for plan in driver.plans for entry in plan.prompt_logprobs] == [5, 5]
    assert got[1].prompt_logprobs == [] and len(got[0].prompt_logprobs) == 10


def test_a_plan_too_early_and_a_result_out_of_turn_are_refused() -> None:
    driver = Driver(async_scheduling=False)
    driver.add([1, 2], max_tokens=5)
    scheduler = driver.scheduler
    plan = scheduler.plan()
    assert plan is not None
    with pytest.raises(RuntimeError, match="step 1 was planned before step 0 was committed"):
        scheduler.plan()
    good = driver.runner.run(plan)
    with pytest.raises(ValueError, match="a result of step 3 came; 0 was awaited"):
        scheduler.commit(dataclasses.replace(good, step=3))
    with pytest.raises(ValueError, match="2 tokens for 1 samples"):
        scheduler.commit(dataclasses.replace(good, tokens=np.zeros(2, np.int32)))
    assert scheduler.commit(good).tokens == good.tokens.tolist()
    with pytest.raises(ValueError, match="None was awaited"):
        scheduler.commit(good)


def test_aborted_requests_leave_nothing_in_the_queue() -> None:
    config = SchedulerConfig(
        max_num_seqs=1, max_num_batched_tokens=8, max_model_len=32, num_pages=8, page_size=4, max_num_queued_reqs=9
    )
    scheduler = Scheduler(config)
    for handle in range(2000):
        params = SamplingParams(max_tokens=4, seed=0)
        scheduler.add(EngineRequest(handle=handle, request_id="", prompt_token_ids=[1] * 9, params=params))
        if handle:  # the head waits for ever
            scheduler.abort(handle)
    (line,) = scheduler._queue._lines.values()
    assert len(line.heap) < 100 and len(scheduler._queue._order) < 100 and scheduler.stats().num_waiting == 1
    plan = scheduler.plan()
    assert plan is not None and len(plan.rows) == 1
    scheduler.abort(0)
    assert scheduler.commit(StepResult(0, np.zeros(int(plan.sample.sum()), np.int32))).tokens == []
    assert not scheduler.has_work


def test_the_last_generated_token_is_not_taken_for_computed() -> None:
    driver = Driver()
    request = driver.add(list(range(8)), handle=0, max_tokens=8)
    driver.run()
    turn = driver.add([*request.prompt_token_ids, *driver.got[0].tokens[0], 9], handle=1)
    got = driver.run()[1]
    assert got.cached == 12 and got.tokens == alone(turn).tokens


def test_a_late_failure_does_not_reach_the_rows_next_owner() -> None:
    driver = Driver(max_num_seqs=1)
    driver.add([1, 2, 3], handle=0, max_tokens=9)
    driver.step()
    driver.runner.fail_rows = {0}
    driver.step()  # launched, and its failure is not known yet
    driver.runner.fail_rows = set()
    driver.scheduler.abort(0)
    request = driver.add([7, 8], handle=1, max_tokens=5)
    assert driver.run()[1].tokens == alone(request).tokens


def test_pages_lost_to_a_preemption_are_findable_once_computed_again() -> None:
    driver = Driver(num_pages=16, max_num_seqs=4)
    driver.add([1] * 12, handle=0, max_tokens=52)  # takes every page in the end
    driver.add([2] * 9, handle=1, max_tokens=30)
    driver.run()
    assert driver.scheduler.stats().num_preemptions == 1 and driver.scheduler.stats().num_evictions > 0
    driver.add([2] * 9, handle=2, max_tokens=1)
    assert driver.run()[2].cached == 8
