"""Sequences that keep a grammar: their next token must be known before the one after it can be drawn.

So they take no part in running ahead: a row is planned again when its token is committed, as a chunk of tokens that the
host knows; and where they are many, nobody runs ahead. Where a grammar leaves but one token, that token is known too,
and the chunk grows by it (jump-ahead).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from octavo.plan import Int32Array, StepPlan
from octavo.request import Finished
from octavo.scheduler.beams_rows import Hands
from octavo.scheduler.collected import Collected
from octavo.scheduler.draft import Draft, Launched
from octavo.scheduler.sequence import Sequence

_FEW = 5  # where fewer than one row in so many is guided, the others are not kept waiting


class Guide(Protocol):
    """Where a sample stands in its grammar (`octavo.grammar.guide.Guide`)."""

    @property
    def words(self) -> Int32Array:
        """int32 [(V + 31) // 32]: which ids may come next."""
        ...

    @property
    def over(self) -> bool: ...
    @property
    def forced(self) -> int | None: ...
    @property
    def error(self) -> str: ...
    def advance_all(self, guides: list[Any], tokens: list[int]) -> None:
        """Take the next token of each of some guides, of which this is one."""

    def copy(self) -> Guide: ...


class Guided:
    """The guides of open sequences, and which of them wait to be planned.

    Attributes:
        guides: by sequence.
        num_jumped: tokens that were known without being drawn.
    """

    def __init__(self, hands: Hands, await_chunk: Callable[[Sequence], None], end: Callable[[Sequence], None]):
        self._hands, self._await_chunk, self._end = hands, await_chunk, end
        self.guides: dict[Sequence, Guide] = {}
        self._ready: list[Sequence] = []
        self.num_jumped = 0

    def leave_row(self, sequence: Sequence) -> None:
        """It was preempted or has ended: there is nothing to plan for it."""
        if sequence in self._ready:
            self._ready.remove(sequence)

    def pages_needed(self) -> int:
        """Pages that the waiting rows lack for the tokens they know."""
        return sum(self._missing(sequence) for sequence in self._ready)

    def _missing(self, sequence: Sequence) -> int:
        rows, row = self._hands.rows, sequence.row
        return max(0, -(-int(rows.known[row]) // self._hands.page_size) - int(rows.num_pages[row]))

    def many_in(self, launched: Launched) -> bool:
        """Whether the step after this one had better wait for it. Running ahead, it would have none of these rows, so
        that each would take every second step, and those of a batch without others would fall into two halves."""
        if not self.guides:
            return False
        owner = self._hands.rows.owner
        count = sum(chunk.sample and owner[chunk.row] in self.guides for chunk in launched.chunks)
        return count * _FEW >= len(launched.rows) and count > 0

    def plan(self, draft: Draft) -> None:
        """Plan every waiting row while tokens last; the pages for them are free."""
        hands, rows = self._hands, self._hands.rows
        for sequence in sorted(self._ready, key=lambda each: each.key):
            if draft.budget < 1:
                return
            self._ready.remove(sequence)
            missing, row = self._missing(sequence), sequence.row
            if missing:
                start, pages = int(rows.num_pages[row]), hands.pool.allocate(missing)
                rows.table[row, start : start + missing] = pages
                rows.num_pages[row] = start + missing
                draft.add_pages(row, start, pages)
            self._await_chunk(sequence)
            hands.take_chunk(sequence, draft)

    def add_masks(self, plan: StepPlan, launched: Launched) -> StepPlan:
        """The plan with what each of its guided rows may draw."""
        owners = [(chunk.row, self._hands.rows.owner[chunk.row]) for chunk in launched.chunks if chunk.sample]
        masked = [(row, self.guides[owner].words) for row, owner in owners if owner in self.guides]
        if not masked:
            return plan
        rows, words = zip(*masked, strict=True)
        return dataclasses.replace(plan, mask_rows=np.array(rows, np.int32), masks=np.stack(words))

    def commit_rows(self, rows: list[int], outputs: Collected) -> int:
        """Follow the newest tokens of those rows that are guided; returns how many tokens were added to them."""
        table, before = self._hands.rows, self.num_jumped
        followed = [owner for row in rows if (owner := table.owner[row]) in self.guides and owner is not None]
        tokens = [int(table.tokens[each.row, table.known[each.row] - 1]) for each in followed]
        while followed:
            guides = [self.guides[each] for each in followed]
            guides[0].advance_all(guides, tokens)
            jumping: list[tuple[Sequence, int]] = []
            for sequence, guide in zip(followed, guides, strict=True):
                if guide.error or guide.over or guide.forced is None or not _may_jump(sequence):
                    self._settle(sequence, guide, outputs)
                elif self._jump(sequence, guide.forced, outputs):
                    jumping.append((sequence, guide.forced))
            followed, tokens = [each for each, _ in jumping], [token for _, token in jumping]
        return self.num_jumped - before

    def _jump(self, sequence: Sequence, token: int, outputs: Collected) -> bool:
        """Add a token that was not drawn. False if that ended the sequence."""
        rows, row, handle = self._hands.rows, sequence.row, sequence.request.handle
        rows.tokens[row, rows.known[row]] = token
        rows.known[row] += 1
        self.num_jumped += 1
        outputs.handles.append(handle)
        outputs.indices.append(sequence.index)
        outputs.tokens.append(token)
        done = sequence.end_at(token, int(rows.known[row]))
        if done is None:
            return True
        outputs.finished.append(Finished(handle, sequence.index, *done))
        self._end(sequence)
        return False

    def _settle(self, sequence: Sequence, guide: Guide, outputs: Collected) -> None:
        handle, index = sequence.request.handle, sequence.index
        if guide.error:
            message = f"The grammar of structured_outputs cannot be kept: {guide.error}."
            outputs.finished.append(Finished(handle, index, "error", None, message))
            self._end(sequence)
        elif guide.over:
            outputs.finished.append(Finished(handle, index, "stop", complete=True))
            self._end(sequence)
        else:
            self._ready.append(sequence)


def _may_jump(sequence: Sequence) -> bool:
    """Logprobs need each token's logits, and penalties count what the sampler draws."""
    params = sequence.request.params
    penalised = params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0
    return params.logprobs is None and not penalised
