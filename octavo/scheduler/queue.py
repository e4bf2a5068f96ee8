"""The waiting sequences, in order of service: fair between tenants, by key within one.

Each tenant has a line, a heap by `Sequence.key`; a second heap orders the lines by their heads. Both are lazy: what is
out of date is skipped when it comes up. Every operation is O(log n).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from octavo.scheduler.fairness import TokenCounters
from octavo.scheduler.sequence import Key, Phase, Sequence

Rank = tuple[float, bool, int]


@dataclass(eq=False, slots=True)
class Line:
    """What waits of one tenant. `stamp` is that of its one valid entry among the lines; 0 is none."""

    tenant: str
    heap: list[tuple[Key, int, Sequence]] = field(default_factory=list)
    num_waiting: int = 0
    stamp: int = 0

    def head(self) -> Sequence | None:
        """The first that still waits."""
        while self.heap and self.heap[0][2].phase is not Phase.WAITING:
            heapq.heappop(self.heap)
        return self.heap[0][2] if self.heap else None

    def push(self, sequence: Sequence, entry: int) -> None:
        """Add one; what no longer waits is swept out when it is most of the heap."""
        self.num_waiting += 1
        if len(self.heap) > 2 * self.num_waiting + 64:
            self.heap = [each for each in self.heap if each[2].phase is Phase.WAITING]
            heapq.heapify(self.heap)
        heapq.heappush(self.heap, (sequence.key, entry, sequence))


class WaitingQueue:
    """Whose request is more urgent (under the priority policy) comes first, then what was preempted, then the tenant
    that has been served least; within a tenant the smallest key. A preempted sequence keeps its key, so it comes back
    before those that came later. With one tenant this is a heap by key.
    """

    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}
        self._order: list[tuple[Rank, int, Line]] = []
        self._counters = TokenCounters()
        self._entries = 0
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def push(self, sequence: Sequence) -> None:
        """Let a sequence wait."""
        sequence.phase = Phase.WAITING
        tenant = sequence.request.tenant
        line = self._lines.get(tenant)
        if line is None:
            line = self._lines[tenant] = Line(tenant)
        if not line.num_waiting:
            self._counters.enter(tenant)
        before = line.heap[0][2] if line.heap else None
        self._entries += 1
        self._waiting += 1
        line.push(sequence, self._entries)
        if line.head() is not before:
            self._place(line)

    def head(self) -> Sequence | None:
        """The next to be served."""
        while self._order:
            _, stamp, line = self._order[0]
            if stamp == line.stamp:
                before = line.heap[0][2] if line.heap else None
                head = line.head()
                if head is before and head is not None:
                    return head
                self._place(line)
            else:
                heapq.heappop(self._order)
        return None

    def pop(self) -> Sequence:
        """Take the head, which the caller has seen."""
        line = self._order[0][2]
        sequence = heapq.heappop(line.heap)[2]
        self._leave(line)
        if not sequence.resumes:
            self._counters.admit(line.tenant, sequence.num_prompt)
        self._place(line)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """A waiting sequence ends; the caller changes its phase."""
        self._leave(self._lines[sequence.request.tenant])

    def charge(self, tenant: str, num_generated_tokens: int) -> None:
        """A sequence of the tenant's has ended, after so many tokens."""
        self._counters.charge(tenant, num_generated_tokens)
        line = self._lines.get(tenant)
        if line is not None and line.num_waiting and len(self._lines) > 1:
            self._place(line)

    def _leave(self, line: Line) -> None:
        line.num_waiting -= 1
        self._waiting -= 1

    def _place(self, line: Line) -> None:
        """Give a line the place that its head has now."""
        head = line.head()
        if head is None:
            line.stamp = 0
            return
        if len(self._order) > 2 * len(self._lines) + 64:
            self._order = [entry for entry in self._order if entry[1] == entry[2].stamp]
            heapq.heapify(self._order)
        self._entries += 1
        line.stamp = self._entries
        rank = (head.key[0], not head.resumes, self._counters[line.tenant])
        heapq.heappush(self._order, (rank, line.stamp, line))
