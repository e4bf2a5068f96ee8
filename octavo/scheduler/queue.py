"""The waiting sequences, in order of service. Removal is lazy: a sequence that no longer waits is skipped."""

from __future__ import annotations

import heapq

from octavo.scheduler.sequence import Key, Phase, Sequence


class WaitingQueue:
    """A heap by `Sequence.key`. A preempted sequence keeps its key, so it comes back before those that came later."""

    def __init__(self) -> None:
        self._heap: list[tuple[Key, int, Sequence]] = []
        self._entries = 0
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def push(self, sequence: Sequence) -> None:
        sequence.phase = Phase.WAITING
        self._entries += 1
        self._waiting += 1
        if len(self._heap) > 2 * self._waiting + 64:  # most entries are of sequences that were aborted
            self._heap = [entry for entry in self._heap if entry[2].phase is Phase.WAITING]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (sequence.key, self._entries, sequence))

    def head(self) -> Sequence | None:
        """The next to be served."""
        while self._heap and self._heap[0][2].phase is not Phase.WAITING:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def pop(self) -> Sequence:
        """Take the head, which the caller has seen."""
        self._waiting -= 1
        return heapq.heappop(self._heap)[2]

    def remove(self, sequence: Sequence) -> None:
        """A waiting sequence ends; the caller changes its phase."""
        self._waiting -= 1
