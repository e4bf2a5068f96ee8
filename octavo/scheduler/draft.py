"""A step while it is being planned."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from octavo.plan import BoolArray, Int32Array, NewRow, PromptLogprobsPlan, StepPlan
from octavo.scheduler.rows import Rows


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, stop) of a row whose ids the host knows. `sample`: stop is the last known token."""

    row: int
    start: int
    stop: int
    sample: bool
    prompt_logprobs: int | None = None  # how many top logprobs, if the chunk's targets are scored


@dataclass(frozen=True, slots=True)
class Launched:
    """What a launched plan meant: `epochs` tell whether a row still belongs to the sequence it was planned for.

    Attributes:
        ends: tokens computed in each row when this step is done.
        decodes: how many of the rows, from the first, are plain decodes; `chunks` are the others, in order.
    """

    rows: Int32Array
    epochs: npt.NDArray[np.int64]
    ends: Int32Array
    sample: BoolArray
    decodes: int
    chunks: tuple[Chunk, ...]


@dataclass(slots=True)
class Draft:
    """Collects a step's parts within a token budget."""

    budget: int
    decode_rows: Int32Array = field(default_factory=lambda: np.empty(0, np.int32))
    chunks: list[Chunk] = field(default_factory=list)
    new_rows: list[NewRow] = field(default_factory=list)
    block_rows: list[int] = field(default_factory=list)
    block_starts: list[int] = field(default_factory=list)
    block_counts: list[int] = field(default_factory=list)
    block_pages: list[int] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    preempted: bool = False

    @property
    def empty(self) -> bool:
        return len(self.decode_rows) == 0 and not self.chunks

    def add_chunk(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self.budget -= chunk.stop - chunk.start

    def add_pages(self, row: int, start: int, pages: list[int]) -> None:
        self.block_rows.append(row)
        self.block_starts.append(start)
        self.block_counts.append(len(pages))
        self.block_pages += pages

    def build(self, step: int, rows: Rows, free_rows: list[int]) -> tuple[StepPlan, Launched]:
        """The plan, with single-token rows first, and what it means."""
        decodes = len(self.decode_rows)
        chunks = sorted(self.chunks, key=lambda chunk: chunk.stop - chunk.start != 1)
        arrays: tuple[Int32Array, Int32Array, Int32Array, BoolArray, BoolArray, Int32Array]
        if chunks:
            arrays = self._with_chunks(chunks, rows)
        else:
            ones, true = np.ones(decodes, np.int32), np.ones(decodes, np.bool_)
            context = (rows.computed[self.decode_rows] - 1).astype(np.int32, copy=False)  # already advanced
            arrays = (self.decode_rows, ones, context, true, ~true, np.empty(0, np.int32))
        all_rows, query, contexts, sample, from_host, ids = arrays
        scored = tuple(
            PromptLogprobsPlan(
                decodes + i,
                chunk.prompt_logprobs,
                rows.tokens[chunk.row, chunk.start + 1 : min(chunk.stop + 1, _num_prompt(rows, chunk.row))].copy(),
            )
            for i, chunk in enumerate(chunks)
            if chunk.prompt_logprobs is not None
        )
        plan = StepPlan(
            step,
            all_rows,
            query,
            contexts,
            sample,
            from_host,
            ids,
            free_rows=np.array(free_rows, np.int32),
            new_rows=tuple(self.new_rows),
            block_rows=np.array(self.block_rows, np.int32),
            block_starts=np.array(self.block_starts, np.int32),
            block_counts=np.array(self.block_counts, np.int32),
            block_pages=np.array(self.block_pages, np.int32),
            copy_pages=np.array(self.copies, np.int32).reshape(-1, 2),
            prompt_logprobs=scored,
        )
        launched = Launched(all_rows, rows.epoch[all_rows], contexts + query, sample, decodes, tuple(chunks))
        return plan, launched

    def _with_chunks(
        self, chunks: list[Chunk], rows: Rows
    ) -> tuple[Int32Array, Int32Array, Int32Array, BoolArray, BoolArray, Int32Array]:
        decodes = len(self.decode_rows)
        starts = np.array([chunk.start for chunk in chunks], np.int32)
        stops = np.array([chunk.stop for chunk in chunks], np.int32)
        chunk_rows = np.array([chunk.row for chunk in chunks], np.int32)
        ids = np.concatenate([rows.tokens[chunk.row, chunk.start : chunk.stop] for chunk in chunks])
        from_host = np.ones(decodes + len(chunks), np.bool_)
        from_host[:decodes] = False
        sample = np.concatenate([np.ones(decodes, np.bool_), np.array([chunk.sample for chunk in chunks], np.bool_)])
        return (
            np.concatenate([self.decode_rows, chunk_rows]),
            np.concatenate([np.ones(decodes, np.int32), stops - starts]),
            np.concatenate([rows.computed[self.decode_rows] - 1, starts]).astype(np.int32),
            sample,
            from_host,
            ids,
        )


def _num_prompt(rows: Rows, row: int) -> int:
    owner = rows.owner[row]
    return owner.num_prompt if owner is not None else 0
