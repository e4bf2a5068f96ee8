"""A random walk over everything that can be asked of a scheduler; texts must come out as if each request were alone."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from octavo.request import EngineRequest, SamplingParams
from tests.scheduler.driver import VOCAB, Driver, Got, alone


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        run_ahead=st.booleans(),
        policy=st.sampled_from(["fcfs", "priority"]),
        pages=st.integers(14, 24),
        budget=st.integers(4, 24),
        caching=st.booleans(),
        host_slots=st.sampled_from([0, 5, 100]),
    )
    def start(self, run_ahead: bool, policy: str, pages: int, budget: int, caching: bool, host_slots: int) -> None:
        self.driver = Driver(
            num_host_slots=host_slots,
            async_scheduling=run_ahead,
            policy=policy,
            num_pages=pages,
            max_model_len=56,
            max_num_seqs=6,
            max_num_batched_tokens=budget,
            enable_prefix_caching=caching,
        )
        self.requests: dict[int, EngineRequest] = {}
        self.aborted: set[int] = set()

    @rule(
        head=st.integers(0, 2),
        tail=st.lists(st.integers(0, VOCAB - 1), max_size=12),
        n=st.sampled_from([1, 1, 2, 3]),
        max_tokens=st.integers(1, 20),
        stops=st.sets(st.integers(0, VOCAB - 1), max_size=3),
        options=st.fixed_dictionaries(
            {"priority": st.integers(0, 2), "cache_salt": st.sampled_from(["", "a"])},
        ),
        prompt_logprobs=st.sampled_from([None, None, 1]),
        seed=st.integers(0, 5),
    )
    def add(
        self,
        head: int,
        tail: list[int],
        n: int,
        max_tokens: int,
        stops: set[int],
        options: dict[str, Any],
        prompt_logprobs: int | None,
        seed: int,
    ) -> None:
        handle = len(self.requests)
        params = SamplingParams(
            n=n, max_tokens=max_tokens, stop_token_ids=tuple(stops), prompt_logprobs=prompt_logprobs, seed=seed
        )
        request = EngineRequest(
            handle=handle,
            request_id=str(handle),
            prompt_token_ids=[head] * (5 + 4 * head) + tail,
            params=params,
            eos_token_ids=(3,),
            **options,
        )
        self.driver.submit(request)
        self.requests[handle] = request

    @precondition(lambda self: any(got.ends for got in self.driver.got.values()))
    @rule(data=st.data(), more=st.integers(1, 5), max_tokens=st.integers(1, 8))
    def add_next_turn(self, data: st.DataObject, more: int, max_tokens: int) -> None:
        """What was said before comes back as a prompt, with something new behind it."""
        ended = sorted(handle for handle, got in self.driver.got.items() if 0 in got.ends)
        if not ended:
            return
        earlier = data.draw(st.sampled_from(ended))
        said = self.requests[earlier].prompt_token_ids + self.driver.got[earlier].tokens[0]
        handle = len(self.requests)
        request = EngineRequest(
            handle=handle,
            request_id=str(handle),
            prompt_token_ids=said[:40] + [VOCAB - 1] * more,
            params=SamplingParams(max_tokens=max_tokens, seed=1),
            cache_salt=self.requests[earlier].cache_salt,
        )
        self.driver.submit(request)
        self.requests[handle] = request

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.driver.step()

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), index=st.sampled_from([None, 0, 1]))
    def abort(self, data: st.DataObject, index: int | None) -> None:
        handle = data.draw(st.sampled_from(sorted(self.requests)))
        if self.driver.scheduler.abort(handle, index):
            self.aborted.add(handle)
        self.driver.scheduler.check()

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        got = self.driver.run()
        stats = self.driver.scheduler.stats()
        assert stats.num_free_pages == stats.num_pages and stats.num_running == stats.num_waiting == 0
        for handle, request in self.requests.items():
            self._compare(got[handle], alone_within_limit(request), handle in self.aborted)

    @staticmethod
    def _compare(got: Got, expected: Got, aborted: bool) -> None:
        if not aborted:
            assert (got.tokens, got.ends, got.prompt_logprobs) == (
                expected.tokens,
                expected.ends,
                expected.prompt_logprobs,
            )
        for index, tokens in got.tokens.items():
            assert tokens == expected.tokens[index][: len(tokens)]


def alone_within_limit(request: EngineRequest) -> Got:
    return alone(request, max_model_len=56)


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=80, stateful_step_count=25)
