"""The scheduler's bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from octavo.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Bounds of a step and of the pool.

    Attributes:
        max_num_seqs: rows; never more sequences run than a step may have tokens, so each can always decode.
        max_model_len: longest sequence; must fit the pool, so that one sequence alone can always finish.

    Raises:
        ConfigError: the bounds contradict each other.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    num_pages: int
    page_size: int
    policy: Literal["fcfs", "priority"] = "fcfs"
    enable_prefix_caching: bool = True
    async_scheduling: bool = True
    max_num_queued_reqs: int = 4096

    def __post_init__(self) -> None:
        if self.max_model_len > self.num_pages * self.page_size:
            raise ConfigError(
                f"A sequence of {self.max_model_len} tokens does not fit {self.num_pages} pages of {self.page_size}.",
                fix="Lower --max-model-len or give the KV cache more memory.",
                param="max_model_len",
            )

    @property
    def max_running(self) -> int:
        return min(self.max_num_seqs, self.max_num_batched_tokens)
