"""Drives a scheduler with the fake runner, as the engine's loop does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from octavo.request import EngineRequest, SamplingParams, StepOutputs
from octavo.scheduler import Scheduler, SchedulerConfig
from tests.scheduler.fake_runner import FakeRunner, Pipeline

VOCAB = 50


@dataclass
class Got:
    """What one request brought."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    ends: dict[int, tuple[str, int | None]] = field(default_factory=dict)
    logprobs: dict[int, list[Any]] = field(default_factory=dict)
    prompt_logprobs: list[Any] = field(default_factory=list)
    cached: int = -1


class Driver:
    def __init__(self, *, num_host_slots: int = 0, **config: Any):
        defaults: dict[str, Any] = {
            "max_num_seqs": 8, "max_num_batched_tokens": 32, "max_model_len": 64, "num_pages": 32, "page_size": 4,
        }  # fmt: skip
        self.config = SchedulerConfig(**{**defaults, **config})
        self.scheduler = Scheduler(self.config, lambda: num_host_slots)
        self.runner = FakeRunner(
            num_pages=self.config.num_pages,
            page_size=self.config.page_size,
            max_num_seqs=self.config.max_num_seqs,
            max_model_len=self.config.max_model_len,
            vocab_size=VOCAB,
            num_host_slots=num_host_slots,
        )
        self.pipeline = Pipeline(self.runner)
        self.got: dict[int, Got] = {}
        self.plans: list[Any] = []

    def add(self, prompt: list[int], handle: int = 0, *, eos: tuple[int, ...] = (), **options: Any) -> EngineRequest:
        extra = {key: options.pop(key) for key in ("priority", "cache_salt", "adapter") if key in options}
        params = SamplingParams(**{"max_tokens": 8, "seed": 0, **options})
        request = EngineRequest(
            handle=handle, request_id=str(handle), prompt_token_ids=prompt, params=params, eos_token_ids=eos, **extra
        )
        self.submit(request)
        return request

    def submit(self, request: EngineRequest) -> None:
        self.scheduler.add(request)
        self.got[request.handle] = Got()

    def step(self) -> StepOutputs | None:
        """One turn of the engine's loop, with the invariants checked."""
        waiting = len(self.pipeline)
        plan = self.scheduler.plan()
        self.scheduler.check()
        if plan is not None:
            self.plans.append(plan)
            assert plan.num_tokens <= self.config.max_num_batched_tokens
            self.pipeline.launch(plan)
        settle = waiting if self.config.async_scheduling else len(self.pipeline)
        if not settle:
            return None
        outputs = self.scheduler.commit(self.pipeline.settle())
        self.scheduler.check()
        self._collect(outputs)
        return outputs

    def run(self, max_steps: int = 5000) -> dict[int, Got]:
        for _ in range(max_steps):
            if not self.scheduler.has_work:
                return self.got
            self.step()
        raise AssertionError("the scheduler does not come to an end")

    def _collect(self, outputs: StepOutputs) -> None:
        for started in outputs.started:
            self.got[started.handle].cached = started.num_cached_tokens
        for handle, index, token in zip(outputs.handles, outputs.indices, outputs.tokens, strict=True):
            assert index not in self.got[handle].ends, "a token after the end"
            self.got[handle].tokens.setdefault(index, []).append(token)
        for end in outputs.finished:
            assert end.index not in self.got[end.handle].ends
            self.got[end.handle].ends[end.index] = (end.reason, end.stop_reason)
        for entry in outputs.logprobs:
            self.got[entry.handle].logprobs.setdefault(entry.index, []).append(entry.entry)
        for scored in outputs.prompt_logprobs:
            assert scored.start == len(self.got[scored.handle].prompt_logprobs) + 1
            self.got[scored.handle].prompt_logprobs += scored.entries


def alone(request: EngineRequest, max_model_len: int = 64) -> Got:
    """The request by itself, in turn, without a prefix cache and with room for everything."""
    driver = Driver(
        num_pages=400,
        max_num_seqs=64,
        max_num_batched_tokens=4096,
        max_model_len=max_model_len,
        async_scheduling=False,
        enable_prefix_caching=False,
    )
    driver.submit(request)
    return driver.run()[request.handle]
