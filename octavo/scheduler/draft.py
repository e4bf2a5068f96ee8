"""A step while it is being planned."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from octavo.plan import BoolArray, Int32Array, NewRow, PoolingPlan, PromptLogprobsPlan, StepPlan
from octavo.request import StepFigures
from octavo.scheduler.rows import Cohort, Rows

NOTHING: Int32Array = np.empty(0, np.int32)
_NO_COPIES: Int32Array = np.empty((0, 2), np.int32)


def _int32(values: list[int]) -> Int32Array:
    return np.array(values, np.int32) if values else NOTHING


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, stop) of a row whose ids the host knows. `sample`: stop is the last known token.

    If `prompt_logprobs` is not None, the prompt tokens [start + 1, scored_stop) are scored, with that many top tokens.
    `pooling`: the tokens count for an embedding, which is complete with this chunk if `pooled`.
    """

    row: int
    start: int
    stop: int
    sample: bool
    prompt_logprobs: int | None = None
    scored_stop: int = 0
    pooling: Literal["", "last", "mean"] = ""
    pooled: bool = False


@dataclass(frozen=True, slots=True)
class Launched:
    """What a launched plan meant: `epochs` tell whether a row still belongs to the sequence it was planned for.

    Attributes:
        cohort: the first of the rows, which are plain decodes; `chunks` are the others, in order.
        num_samples: how many of the rows have `sample`.
        num_tokens: that it computes.
        time: when it was planned, `time.monotonic()`.
    """

    step: int
    rows: Int32Array
    epochs: npt.NDArray[np.int64]
    sample: BoolArray
    num_samples: int
    cohort: Cohort
    chunks: tuple[Chunk, ...]
    num_tokens: int
    time: float


class StepClock:
    """Tells how long steps take.

    Attributes:
        last: of the step that was settled last. While steps follow each other, its time is from the end of the one
            before, so that times of steps which overlap add up to the time that passed.
    """

    __slots__ = ("_settled", "last")

    def __init__(self) -> None:
        self.last = StepFigures()
        self._settled = 0.0

    def settle(self, launched: Launched) -> None:
        """A step's results are here."""
        now = time.monotonic()
        self.last = StepFigures(now - max(launched.time, self._settled), launched.num_tokens)
        self._settled = now


@dataclass(slots=True)
class Draft:
    """Collects a step's parts within a token budget. The cohort is set by the first part of planning."""

    budget: int
    cohort: Cohort
    decode_contexts: Int32Array = field(default_factory=lambda: NOTHING)
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
        return not self.cohort.handles and not self.chunks

    def add_chunk(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self.budget -= chunk.stop - chunk.start

    def add_pages(self, row: int, start: int, pages: list[int]) -> None:
        self.block_rows.append(row)
        self.block_starts.append(start)
        self.block_counts.append(len(pages))
        self.block_pages += pages

    def build(self, step: int, rows: Rows, free_rows: list[int]) -> tuple[StepPlan, Launched]:
        """The plan, with single-token rows first and what begins a sequence last, and what it means."""
        decodes = len(self.cohort.rows)
        chunks = sorted(self.chunks, key=lambda chunk: (chunk.stop - chunk.start != 1, chunk.start == 0))
        arrays: tuple[Int32Array, Int32Array, Int32Array, BoolArray, BoolArray, Int32Array]
        if chunks:
            arrays = self._with_chunks(chunks, rows)
        else:
            ones, true, false = _constants(decodes)
            arrays = (self.cohort.rows, ones, self.decode_contexts, true, false, NOTHING)
        all_rows, query, contexts, sample, from_host, ids = arrays
        epochs = rows.epoch[all_rows] if chunks else self.cohort.epochs
        scored = tuple(
            PromptLogprobsPlan(
                decodes + i,
                chunk.prompt_logprobs,
                rows.tokens[chunk.row, chunk.start + 1 : chunk.scored_stop].copy(),
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
            free_rows=_int32(free_rows),
            new_rows=tuple(self.new_rows),
            block_rows=_int32(self.block_rows),
            block_starts=_int32(self.block_starts),
            block_counts=_int32(self.block_counts),
            block_pages=_int32(self.block_pages),
            copy_pages=np.array(self.copies, np.int32) if self.copies else _NO_COPIES,
            prompt_logprobs=scored,
            pooling=tuple(
                PoolingPlan(decodes + i, chunk.pooling, chunk.pooled) for i, chunk in enumerate(chunks) if chunk.pooling
            ),
        )
        samples = decodes + sum(chunk.sample for chunk in chunks)
        tokens = decodes + sum(chunk.stop - chunk.start for chunk in chunks)
        moment = time.monotonic()
        launched = Launched(step, all_rows, epochs, sample, samples, self.cohort, tuple(chunks), tokens, moment)
        return plan, launched

    def _with_chunks(
        self, chunks: list[Chunk], rows: Rows
    ) -> tuple[Int32Array, Int32Array, Int32Array, BoolArray, BoolArray, Int32Array]:
        decodes = len(self.cohort.rows)
        starts = np.array([chunk.start for chunk in chunks], np.int32)
        stops = np.array([chunk.stop for chunk in chunks], np.int32)
        chunk_rows = np.array([chunk.row for chunk in chunks], np.int32)
        ids = np.concatenate([rows.tokens[chunk.row, chunk.start : chunk.stop] for chunk in chunks])
        from_host = np.ones(decodes + len(chunks), np.bool_)
        from_host[:decodes] = False
        sample = np.concatenate([np.ones(decodes, np.bool_), np.array([chunk.sample for chunk in chunks], np.bool_)])
        return (
            np.concatenate([self.cohort.rows, chunk_rows]),
            np.concatenate([np.ones(decodes, np.int32), stops - starts]),
            np.concatenate([self.decode_contexts, starts]),
            sample,
            from_host,
            ids,
        )


@functools.lru_cache(maxsize=64)
def _constants(count: int) -> tuple[Int32Array, BoolArray, BoolArray]:
    """Query lengths, `sample` and `from_host` of a step of decodes only; nobody writes to them."""
    return np.ones(count, np.int32), np.ones(count, np.bool_), np.zeros(count, np.bool_)
