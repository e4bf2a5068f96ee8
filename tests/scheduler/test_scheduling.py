"""What the scheduler promises, one behaviour a test."""

from __future__ import annotations

import pytest

from octavo.errors import ConfigError, ContextLengthError, InvalidRequestError, OverloadedError
from octavo.scheduler import SchedulerConfig
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
