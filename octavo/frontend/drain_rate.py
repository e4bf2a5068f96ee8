"""How fast requests end, as measured: what a client that has to come back is told."""

from __future__ import annotations

from collections import deque

WINDOW_SECONDS = 30.0
_MOST_SECONDS = 120.0


class DrainRate:
    """Counts of ends by second, over the last `WINDOW_SECONDS`. Times are `time.monotonic()`."""

    def __init__(self) -> None:
        self._counts: deque[list[float]] = deque()  # [second, ends in it]
        self._total = 0.0

    def note(self, now: float) -> None:
        """A request ended."""
        second = float(int(now))
        if self._counts and self._counts[-1][0] == second:
            self._counts[-1][1] += 1
        else:
            self._counts.append([second, 1.0])
        self._total += 1

    def per_second(self, now: float) -> float:
        """Requests that ended a second, over the window or the part of it since the first one ended."""
        while self._counts and self._counts[0][0] < now - WINDOW_SECONDS:
            self._total -= self._counts.popleft()[1]
        if not self._counts:
            return 0.0
        return self._total / max(1.0, now - self._counts[0][0])

    def seconds_for(self, count: int, now: float, unknown: float = 5.0) -> float:
        """How long until so many will have ended, from 1 s to 120 s; `unknown` where none did lately."""
        rate = self.per_second(now)
        return min(_MOST_SECONDS, max(1.0, count / rate)) if rate else unknown
