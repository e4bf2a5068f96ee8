"""Several samples of a request: when they fork, wait, go on without each other, and with which seeds."""

from __future__ import annotations

import pytest

from octavo.scheduler.sequence import sample_seed
from tests.scheduler.driver import Driver, alone


def test_seeds_are_those_of_splitmix64() -> None:
    # The generator's first three outputs from the state 0 (Vigna's splitmix64.c).
    assert [sample_seed(0, index) for index in (1, 2, 3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]
    assert sample_seed(1234, 0) == 1234
    assert sample_seed(-1, 0) == 2**64 - 1


def test_a_page_border_at_the_prompts_end_needs_no_copy() -> None:
    driver = Driver(page_size=4)
    request = driver.add(list(range(9)), n=3, max_tokens=6)  # the last prompt token is a page's first
    driver.step()
    driver.step()
    assert len(driver.plans[1].copy_pages) == 0
    assert driver.run()[0].tokens == alone(request).tokens


def test_forks_are_made_from_what_an_earlier_step_wrote() -> None:
    driver = Driver(max_num_batched_tokens=8)
    driver.add(list(range(11)), n=2, max_tokens=6)
    for _ in range(3):
        driver.step()
    assert [plan.query_lens.tolist() for plan in driver.plans] == [[8], [3], [1, 1]]
    source, destination = driver.plans[2].copy_pages[0].tolist()
    assert source == driver.plans[0].block_pages[2] and destination in driver.plans[2].block_pages
    assert driver.plans[2].context_lens.tolist() == [11, 10]


@pytest.mark.parametrize("run_ahead", [True, False])
def test_more_samples_than_rows_take_turns(run_ahead: bool) -> None:
    driver = Driver(max_num_seqs=2, async_scheduling=run_ahead)
    request = driver.add(list(range(10)), n=7, max_tokens=5)
    got = driver.run()[0]
    assert got.tokens == alone(request).tokens and len(got.ends) == 7
    assert max(len(plan.rows) for plan in driver.plans) == 2


def test_samples_whose_first_has_ended_find_its_pages() -> None:
    driver = Driver(max_num_seqs=1)
    driver.add(list(range(17)), n=2, max_tokens=3)
    driver.run()
    assert [plan.query_lens.tolist() for plan in driver.plans if plan.query_lens[0] > 1] == [[17]]
    last = [plan for plan in driver.plans if plan.new_rows][-1]
    assert last.context_lens.tolist() == [16]  # all but the last token, which was in the fifth page


def test_one_sample_ends_without_the_others() -> None:
    driver = Driver()
    request = driver.add(list(range(10)), n=3, max_tokens=9)
    for _ in range(4):
        driver.step()
    said = [len(driver.got[0].tokens[index]) for index in range(3)]
    assert driver.scheduler.abort(0, 1) and not driver.scheduler.abort(0, 1)
    got, expected = driver.run()[0], alone(request)
    assert {0, 2} == set(got.ends) and len(got.tokens[1]) == said[1]
    assert got.tokens[0] == expected.tokens[0] and got.tokens[2] == expected.tokens[2]


@pytest.mark.parametrize("steps", range(4))
@pytest.mark.parametrize("run_ahead", [True, False])
def test_the_others_go_on_without_the_first_sample(steps: int, run_ahead: bool) -> None:
    driver = Driver(max_num_batched_tokens=6, async_scheduling=run_ahead)
    request = driver.add(list(range(14)), n=3, max_tokens=6)
    for _ in range(steps):
        driver.step()
    assert driver.scheduler.abort(0, 0)
    got, expected = driver.run()[0], alone(request)
    assert got.tokens[1] == expected.tokens[1] and got.tokens[2] == expected.tokens[2]
    assert 0 not in got.ends
    assert driver.scheduler.stats().num_free_pages == 32


def test_a_first_sample_preempted_in_its_prompt_comes_back_to_be_forked() -> None:
    driver = Driver(num_pages=16, max_num_batched_tokens=5, max_model_len=60)
    old = driver.add(list(range(8)), handle=0, max_tokens=40)
    driver.step()
    driver.step()
    request = driver.add([30] * 50, handle=1, n=3, max_tokens=2)  # all the pages that are left, four tokens a step
    while driver.scheduler.stats().num_preemptions == 0:
        driver.step()
    assert not driver.got[1].tokens and driver.scheduler.stats().num_running == 1
    got = driver.run()
    assert got[0].tokens == alone(old).tokens and got[1].tokens == alone(request, 60).tokens
    prompts = [plan for plan in driver.plans for new in plan.new_rows if new.num_prompt_tokens == 50]
    assert len(prompts) == 4  # the first sample twice, each other one once
    assert sum(len(plan.copy_pages) for plan in driver.plans) == 2  # and those as forks


def test_a_request_for_prompt_logprobs_and_samples_scores_its_prompt_once() -> None:
    driver = Driver(max_num_batched_tokens=5)
    request = driver.add(list(range(12)), n=3, max_tokens=2, prompt_logprobs=2)
    got = driver.run()[0]
    assert [entry.token_id for entry in got.prompt_logprobs] == list(range(1, 12))
    assert all(len(entry.top_ids) == 2 for entry in got.prompt_logprobs)
    assert got == alone(request)


def test_a_fork_makes_its_prompt_findable_if_the_first_sample_left_too_early() -> None:
    driver = Driver()
    driver.add(list(range(13)), n=2, max_tokens=4)
    for _ in range(2):  # the second forks while the first's only step is in flight
        plan = driver.scheduler.plan()
        assert plan is not None
        driver.pipeline.launch(plan)
    assert driver.scheduler.abort(0, 0)
    assert driver.scheduler.commit(driver.pipeline.settle()).tokens == []
    driver.run()
    driver.add(list(range(13)), handle=1, max_tokens=1)
    assert driver.run()[1].cached == 12
