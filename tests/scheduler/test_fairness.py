"""Tenants share the engine: who has had least is next, whatever the others have waiting."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.request import EngineRequest, SamplingParams
from octavo.scheduler.fairness import TokenCounters
from octavo.scheduler.queue import WaitingQueue
from octavo.scheduler.sequence import Phase, make_group
from tests.scheduler.driver import Driver


def request(handle, tenant, prompt=4, max_tokens=8, priority=0):
    params = SamplingParams(max_tokens=max_tokens, seed=0)
    return EngineRequest(
        handle=handle, request_id=str(handle), prompt_token_ids=[1] * prompt, params=params, tenant=tenant,
        priority=priority,
    )  # fmt: skip


def sequence(handle, tenant, prompt=4, urgency=0.0):
    return make_group(request(handle, tenant, prompt), (urgency, handle), 1024).sequences[0]


def started(outputs):
    return [each.handle for each in outputs.started] if outputs else []


def order_of_starts(driver):
    order = []
    while driver.scheduler.has_work:
        order += started(driver.step())
    return order


def test_one_request_passes_a_thousand_of_another_tenants():
    driver = Driver(max_num_seqs=2)
    for handle in range(1000):
        driver.submit(request(handle, "many"))
    for _ in range(30):
        driver.step()
    begun = 1000 - driver.scheduler.stats().num_waiting
    driver.submit(request(5000, "one"))
    order = []
    while 5000 not in order:
        order += started(driver.step())
    assert len(order) <= 2  # at most those that were in the plan already, then it
    assert begun < 20


def test_two_that_flood_get_equal_shares_of_tokens_not_of_requests():
    driver = Driver(max_num_seqs=2, max_num_queued_reqs=4096)
    for handle in range(60):
        driver.submit(request(handle, "long", prompt=8, max_tokens=24))
    for handle in range(100, 500):
        driver.submit(request(handle, "short", prompt=4, max_tokens=2))
    served = {"long": 0, "short": 0}
    order = []
    while len(order) < 120:
        order += started(driver.step())
    for handle in order:
        served["long" if handle < 100 else "short"] += 8 + 2 * 24 if handle < 100 else 4 + 2 * 2
    assert 0.8 < served["long"] / served["short"] < 1.25


def test_within_a_tenant_it_is_first_come_first_served():
    driver = Driver(max_num_seqs=1)
    for handle in range(30):
        driver.submit(request(handle, "ab"[handle % 2]))
    order = order_of_starts(driver)
    for parity in (0, 1):
        own = [handle for handle in order if handle % 2 == parity]
        assert own == sorted(own) and len(own) == 15


def test_nobody_saves_up_turns_by_being_away():
    counters = TokenCounters()
    counters.enter("busy")
    for _ in range(100):
        counters.admit("busy", 10)
    counters.enter("back")
    assert counters["busy"] - counters["back"] == 10  # a turn, not a hundred


def test_priority_goes_before_fairness():
    driver = Driver(max_num_seqs=1, policy="priority")
    for handle in range(10):
        driver.submit(request(handle, "low", priority=5))
    for handle in range(20, 25):
        driver.submit(request(handle, "other", priority=5))
    driver.submit(request(90, "low", priority=1))
    order = order_of_starts(driver)
    assert order[0] == 90


def test_what_was_preempted_comes_before_anybodys_new_request():
    queue = WaitingQueue()
    queue.push(sequence(5, "b"))
    queue.push(sequence(6, "b"))
    for handle in range(3):
        old = sequence(handle, "a")
        queue.push(old)
    first = [queue.head(), queue.pop()][1]
    assert first.request.tenant == "b"
    victim = sequence(1000, "a")
    victim.key, victim.resumes = (0.0, -1.0), True
    queue.push(victim)
    assert queue.head() is victim and queue.pop() is victim
    assert queue.head().request.tenant == "a"  # it was not charged again


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.sampled_from("abc"), st.integers(1, 9)),
            st.tuples(st.just("pop"), st.just(""), st.just(0)),
            st.tuples(st.just("remove"), st.just(""), st.integers(0, 20)),
            st.tuples(st.just("charge"), st.sampled_from("abc"), st.integers(0, 9)),
        ),
        max_size=60,
    )
)
def test_the_heaps_serve_as_a_plain_search_would(actions):
    queue, counters = WaitingQueue(), TokenCounters()
    waiting: list = []
    handle = 0
    for what, tenant, number in actions:
        if what == "push":
            if not any(each.request.tenant == tenant for each in waiting):
                counters.enter(tenant)
            handle += 1
            waiting.append(sequence(handle, tenant, number))
            queue.push(waiting[-1])
        elif what == "charge":
            counters.charge(tenant, number)
            queue.charge(tenant, number)
        elif what == "remove" and waiting:
            gone = waiting.pop(number % len(waiting))
            queue.remove(gone)
            gone.phase = Phase.ENDED
        elif what == "pop" and waiting:
            least = min(counters[each.request.tenant] for each in waiting)
            head = queue.head()
            assert counters[head.request.tenant] == least
            assert head is min((s for s in waiting if s.request.tenant == head.request.tenant), key=lambda s: s.key)
            assert queue.pop() is head
            head.phase = Phase.RUNNING
            waiting.remove(head)
            counters.admit(head.request.tenant, head.num_prompt)
        assert len(queue) == len(waiting)
        assert (queue.head() is None) == (not waiting)


def test_a_request_costs_little_with_many_waiting():
    def seconds(count):
        queue = WaitingQueue()
        sequences = [sequence(handle, str(handle % 500), 3) for handle in range(count)]
        start = time.process_time()
        for each in sequences:
            queue.push(each)
        while queue.head() is not None:
            queue.pop().phase = Phase.RUNNING
        return (time.process_time() - start) / count

    seconds(1000)
    few, many = min(seconds(1000) for _ in range(3)), min(seconds(16_000) for _ in range(2))
    assert many < 4 * few  # log n: 1.4 times
