"""What a commit gathers for the frontends, before it becomes one message."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from octavo.plan import Float32Array
from octavo.request import (
    EngineStats,
    Finished,
    Pooled,
    PromptLogprobs,
    SampleLogprobs,
    Started,
    StepOutputs,
)


@dataclass(slots=True)
class Collected:
    """The parts of a `StepOutputs`. `handles`, `indices`, `tokens` are parallel."""

    handles: list[int] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    logprobs: list[SampleLogprobs] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)
    pooled: list[Pooled] = field(default_factory=list)

    def add_embedding(self, handle: int, vector: Float32Array) -> None:
        """An embedding, with which its request ends."""
        self.pooled.append(Pooled(handle, np.ascontiguousarray(vector, np.dtype("<f4")).tobytes()))
        self.finished.append(Finished(handle, 0, "stop"))

    def outputs(self, started: list[Started], stats: EngineStats) -> StepOutputs:
        """All of it as a message."""
        return StepOutputs(
            self.handles,
            self.indices,
            self.tokens,
            self.finished,
            started,
            self.logprobs,
            self.prompt_logprobs,
            stats,
            self.pooled,
        )
