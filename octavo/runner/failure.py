"""The result of a step whose computation raised: every row failed, nobody else noticed."""

from __future__ import annotations

import numpy as np

from octavo.plan import LogprobArrays, StepPlan, StepResult


def failed_result(plan: StepPlan) -> StepResult:
    """All rows of the step in `failed`; its requests end with an error."""
    nothing = LogprobArrays(
        np.empty(0, np.float32), np.empty(0, np.int32), np.empty((0, 0), np.int32), np.empty((0, 0), np.float32)
    )
    return StepResult(
        plan.step,
        np.zeros(int(plan.sample.sum()), np.int32),
        prompt_logprobs=tuple(nothing for _ in plan.prompt_logprobs),
        failed=tuple(range(len(plan.rows))),
    )
