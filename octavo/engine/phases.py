"""Where a start's time goes, and telling whoever waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, float], None]
"""Called with a phase's name and the fraction of it that is done, 0 to 1."""


class PhaseTimer:
    """Times named phases in order, and reports their progress."""

    def __init__(self, progress: Progress | None = None):
        self._progress = progress
        self.seconds: list[tuple[str, float]] = []

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
