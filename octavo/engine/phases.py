"""Where a start's time goes, and telling whoever waits for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

Progress = Callable[[str, float], None]
"""Called with a phase's name and the fraction of it that is done, 0 to 1."""


def process_age() -> float | None:
    """Seconds since this process began; None where the system does not tell (all but Linux)."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # proc(5), field 22: starttime
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


class PhaseTimer:
    """Times named phases in order, and reports their progress.

    Args:
        before: phases that are over.
    """

    def __init__(self, progress: Progress | None = None, before: Sequence[tuple[str, float]] = ()):
        self._progress = progress
        self.seconds: list[tuple[str, float]] = list(before)

    @contextmanager
    def phase(self, name: str) -> Iterator[Callable[[float], None]]:
        """Time a phase; yields a function to report its fraction done."""
        start = time.perf_counter()
        self._report(name, 0.0)
        yield lambda fraction: self._report(name, fraction)
        self._report(name, 1.0)
        self.seconds.append((name, time.perf_counter() - start))

    def _report(self, name: str, fraction: float) -> None:
        if self._progress is not None:
            self._progress(name, fraction)
