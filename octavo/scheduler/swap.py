"""Preempted sequences keep what they computed in host memory, and go on from there when they come back.

A slot of host memory holds one page of all layers. Both copies are part of a plan and run in its order, before the
forward pass, so pages and slots may be given away again as soon as the copy out of them is planned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from octavo.plan import Int32Array, StepPlan
from octavo.scheduler.sequence import Phase, Sequence

_FEWEST_PAGES = 3  # fewer are computed anew in less time than it takes to bring them back with everything around it


@dataclass(frozen=True, slots=True)
class Saved:
    """The first `num_tokens` tokens of a sequence, in these slots, a page each."""

    slots: list[int]
    num_tokens: int


class Swap:
    """Who has which slots, and the copies that the next plan brings.

    Args:
        num_slots: tells how many slots there are by now; it never tells fewer than before.

    Attributes:
        page_size: tokens of a page.
        num_out, num_in: pages copied to the host and back since the start.
    """

    def __init__(self, num_slots: Callable[[], int], page_size: int):
        self._num_slots, self.page_size = num_slots, page_size
        self._free: list[int] = []
        self._total = 0
        self._saved: dict[Sequence, Saved] = {}
        self._out: list[tuple[int, int]] = []
        self._in: list[tuple[int, int]] = []
        self.num_out = self.num_in = 0

    def save(self, sequence: Sequence, pages: list[int]) -> None:
        """Keep what is known to be computed of a sequence that leaves its row, as far as slots are free.

        The last known token is left out: it is computed again for its logits. So is what no step has confirmed.
        """
        total = self._num_slots()
        self._free.extend(range(self._total, total))
        self._total = total
        num_tokens = 0 if sequence.needs_all_states else min(sequence.settled, len(sequence.tokens) - 1)
        count = min(-(-num_tokens // self.page_size), len(self._free))
        if count < _FEWEST_PAGES:
            return
        slots = [self._free.pop() for _ in range(count)]
        self._saved[sequence] = Saved(slots, min(num_tokens, count * self.page_size))
        self._out += zip(pages, slots, strict=False)
        self.num_out += count

    def restore(self, sequence: Sequence, pages: list[int], num_cached: int) -> int:
        """Bring back what the first `num_cached` of a sequence's new pages do not hold already.

        Returns:
            How many of its tokens the pages hold when the next step begins.
        """
        saved = self._saved.get(sequence)
        cached = num_cached * self.page_size
        if saved is None or saved.num_tokens <= cached:
            self.drop(sequence)
            return cached
        pairs = list(zip(pages, saved.slots, strict=False))[num_cached:]
        self._in += pairs
        self.num_in += len(pairs)
        del self._saved[sequence]
        self._free += saved.slots
        return saved.num_tokens

    def drop(self, sequence: Sequence) -> None:
        """The sequence has ended or needs its slots no more."""
        saved = self._saved.pop(sequence, None)
        if saved is not None:
            dropped = set(saved.slots)
            self._out = [pair for pair in self._out if pair[1] not in dropped]
            self._free += saved.slots

    def add_copies(self, plan: StepPlan) -> StepPlan:
        """The plan with the copies that were asked for since the one before."""
        if not self._out and not self._in:
            return plan
        plan = dataclasses.replace(plan, swap_out=_pairs(self._out), swap_in=_pairs(self._in))
        self._out, self._in = [], []
        return plan

    def check(self, *, idle: bool) -> None:
        """Verify that every slot is free or has one owner, who waits.

        Raises:
            RuntimeError: names what does not hold.
        """
        owned = [slot for saved in self._saved.values() for slot in saved.slots]
        if sorted(owned + self._free) != list(range(self._total)):
            raise RuntimeError("host slots are lost, or have two owners")
        if any(sequence.phase is not Phase.WAITING for sequence in self._saved):
            raise RuntimeError("a sequence has host slots but does not wait")
        if idle and owned:
            raise RuntimeError("nothing is open, but host slots are owned")


def _pairs(pairs: list[tuple[int, int]]) -> Int32Array:
    return np.array(pairs, np.int32).reshape(-1, 2)
