"""Whom to preempt: the sequence that is cheapest to bring back for the pages it gives."""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np

from octavo.kv import PagePool
from octavo.scheduler.rows import Rows
from octavo.scheduler.sequence import Sequence


def choose_victim(running: Many[Sequence], rows: Rows, pool: PagePool, pages_needed: int) -> Sequence:
    """The victim among `running`, which is in order of service.

    The first in order is never chosen, nor another beam of its search, so the work always comes to an end. Among those
    of the lowest urgency, the cost is the tokens to compute again (pages that others hold stay, and will be found) for
    each page that is gained and needed; of equals, the last to arrive.

    Raises:
        RuntimeError: there is nobody but the first, who alone must always fit.
    """
    first = running[0].request
    others = [sequence for sequence in running[1:] if sequence.request is not first or not first.params.use_beam_search]
    if not others:
        raise RuntimeError("the pool has no page for the only sequence that runs")
    lowest = others[-1].key[0]

    def cost(sequence: Sequence) -> tuple[float, tuple[float, ...]]:
        row = sequence.row
        pages = rows.table[row, : rows.num_pages[row]]
        gained = int(np.count_nonzero(pool.counts.take(pages) == 1))
        computed = int(rows.computed[row])
        lost = computed - (len(pages) - gained) * computed // len(pages)
        useful = min(gained, pages_needed)
        return (lost / useful if useful else float("inf"), tuple(-part for part in sequence.key))

    return min((sequence for sequence in others if sequence.key[0] == lowest), key=cost)
