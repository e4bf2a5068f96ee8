"""The invariants of README.md, checked when the engine is idle and, in tests, after every step."""

from __future__ import annotations

from collections.abc import Sequence as Many

from octavo.kv import PagePool
from octavo.scheduler.rows import Rows
from octavo.scheduler.sequence import Phase, Sequence
from octavo.scheduler.swap import Swap


def check_invariants(rows: Rows, pool: PagePool, swap: Swap, running: Many[Sequence], *, idle: bool) -> None:
    """Compare rows, running sequences, pages and host slots.

    Args:
        idle: no request is open, so every page and slot must be free.

    Raises:
        RuntimeError: names the first thing that does not hold.
    """
    pool.check([rows.pages(sequence.row) for sequence in running])
    taken = [row for row, owner in enumerate(rows.owner) if owner is not None]
    if sorted(sequence.row for sequence in running) != taken:
        raise RuntimeError("rows are taken by sequences that do not run")
    for sequence in running:
        row = sequence.row
        if rows.owner[row] is not sequence or sequence.phase is not Phase.RUNNING:
            raise RuntimeError(f"row {row} is not the row of the sequence that says so")
        if rows.computed[row] > rows.num_pages[row] * swap.page_size:
            raise RuntimeError(f"row {row} has computed more tokens than its pages hold")
        if rows.computed[row] > rows.known[row] + rows.in_flight[row]:
            raise RuntimeError(f"row {row} has computed tokens that nothing brings")
    if idle and pool.num_free != pool.num_pages:
        raise RuntimeError("nothing is open, but pages are owned")
    swap.check(idle=idle)
