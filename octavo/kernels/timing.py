"""Timing several ways to do one thing on a GPU while an engine starts: all are queued, and waited for once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

T = TypeVar("T")

CALLS = 4  # a round, over as many matrices of the shape as there are
WORTH = 0.97  # what replaces the usual way takes at most this share of its time

Rounds = list[tuple[Any, Any]]
"""Events at the start and the end of each round."""


def queue_rounds(call: Callable[[T], object], matrices: Sequence[T], rounds: int, ahead_cycles: int) -> Rounds:
    """Queue a call that warms up, then rounds of calls with the matrices in turn.

    Args:
        ahead_cycles: the device waits so long, that the host may be ahead of it.
    """
    torch.cuda._sleep(ahead_cycles)
    call(matrices[-1])
    queued: Rounds = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for i in range(CALLS):
            call(matrices[i % len(matrices)])
        end.record()
        queued.append((start, end))
    return queued


def best_milliseconds(rounds: Rounds) -> float:
    """Of the fastest round, as one alone may be disturbed. What was queued must be done."""
    return min(float(start.elapsed_time(end)) for start, end in rounds)
