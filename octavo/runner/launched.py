"""A step on its way on a GPU, and one that did not get there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.plan import Float32Array, Int32Array, LogprobArrays, StepPlan, StepResult
from octavo.runner.failure import failed_result
from octavo.runner.step_buffers import HostOutputs


@dataclass(frozen=True, slots=True)
class Launched:
    """A step on its way: `event` is passed when `host` holds its results."""

    plan: StepPlan
    event: torch.cuda.Event
    host: HostOutputs
    chosen: Int32Array
    logprobs: LogprobArrays | None
    scored: tuple[LogprobArrays, ...]
    pooled: tuple[Float32Array, ...] = ()
    unusable: tuple[int, ...] = ()

    def result(self) -> StepResult:
        """Wait for the copy to the host, not for the device."""
        self.event.synchronize()
        count = len(self.chosen)
        failed = self.host.failed[:count].numpy()
        return StepResult(
            self.plan.step,
            self.host.tokens[:count].numpy().copy(),
            logprobs=self.logprobs,
            prompt_logprobs=self.scored,
            failed=tuple(sorted([*self.chosen[failed != 0].tolist(), *self.unusable])),
            pooled=self.pooled,
        )


@dataclass(frozen=True, slots=True)
class Failed:
    """A step that could not be launched."""

    plan: StepPlan

    def result(self) -> StepResult:
        return failed_result(self.plan)
