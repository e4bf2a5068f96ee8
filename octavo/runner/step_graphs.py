"""Steps as CUDA graphs: which sizes are captured, and which one a step is padded to.

A step of single-token rows that all sample needs a graph by its number of rows. Any other step of few tokens (prompts
beside decoded rows, tokens that a grammar left no choice about) needs one by its tokens and its samples: what its rows
are is read on the device, and the tiles of its longer rows from a buffer of fixed size. Steps of many tokens keep the
device busy for longer than the host takes to launch their kernels one by one.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from octavo.kernels.triton.paged_extend import plan_extend
from octavo.plan import Int32Array, StepPlan
from octavo.runner.shared_prefix import shared_sizes
from octavo.runner.step_buffers import RING, not_owning

MOST_TOKENS = 1024
_MOST_SAMPLES = 512  # of a step that is not single-token rows alone
_MOST_PAIRS = 1 << 21  # of queries and keys: with more, FA3 gains what launching its step takes


class Size(NamedTuple):
    """What a graph is captured for; `single` tokens are rows that all sample."""

    tokens: int
    samples: int
    shared: bool
    single: bool


class Captured(NamedTuple):
    """A graph, and where it leaves the logits."""

    size: Size
    graph: torch.cuda.CUDAGraph
    logits: torch.Tensor


class ExtendTiles:
    """Tiles of the rows that attend as prompts do, in memory that graphs read.

    Args:
        tokens_per_tile: query tokens of a tile.
        every_row: single-token rows are tiles too.
    """

    def __init__(self, max_num_seqs: int, tokens_per_tile: int, every_row: bool, device: torch.device):
        self._max_num_seqs, self._per_tile, self._every_row = max_num_seqs, tokens_per_tile, every_row
        size = self.room(MOST_TOKENS)
        self._tiles = torch.full((size, 2), -1, dtype=torch.int32, device=device)
        self._host = [torch.full((size, 2), -1, dtype=torch.int32) for _ in range(RING)]
        if device.type == "cuda":
            self._host = [tiles.pin_memory() for tiles in self._host]

    def room(self, tokens: int) -> int:
        """Tiles that a graph of so many tokens has: whole ones, and those that a row does not fill."""
        partial = min(tokens, self._max_num_seqs) if self._every_row else tokens // 8
        return tokens // self._per_tile + partial

    def of(self, tokens: int) -> torch.Tensor:
        """int32 [tiles, 2] on the device, of a graph of so many tokens."""
        return self._tiles[: self.room(tokens)]

    def count(self, plan: StepPlan) -> int:
        """Tiles of a step."""
        lengths = plan.query_lens if self._every_row else plan.query_lens[plan.query_lens > 1]
        return int((-(-lengths // self._per_tile)).sum())

    def plan(self, query_lens: Int32Array, context_lens: Int32Array) -> Int32Array:
        """int32 [N, 2]: the tiles of rows."""
        return plan_extend(query_lens, context_lens, self._per_tile, min_query_len=1 if self._every_row else 2)

    def send(self, plan: StepPlan, tokens: int, slot: int) -> None:
        """Put a step's tiles where its graph reads them.

        Args:
            tokens: of the graph.
            slot: of the ring of host buffers; what was sent from it before has arrived.
        """
        tiles = self.plan(plan.query_lens, plan.context_lens)
        host, room = self._host[slot].numpy(), self.room(tokens)
        host[: len(tiles)], host[len(tiles) : room] = tiles, -1
        self._tiles[:room].copy_(self._host[slot][:room], non_blocking=True)


class StepGraphs:
    """The graphs of an engine; without `capture` there are none, and every step is launched kernel by kernel.

    Args:
        sharing: whether there are steps whose rows read shared pages once.
        few_pairs: prompts with many keys are better off without a graph.
    """

    def __init__(
        self, max_num_seqs: int, max_num_batched_tokens: int, *, sharing: bool, few_pairs: bool, tiles: ExtendTiles
    ):
        self._max_num_seqs, self._sharing, self._few_pairs = max_num_seqs, sharing, few_pairs
        self._most_tokens = min(MOST_TOKENS, max_num_batched_tokens)
        self.tiles = tiles
        self._captured: dict[Size, Captured] = {}
        self._ladders: dict[tuple[bool, bool], list[Size]] = {}  # by shared and single, smallest first

    def sizes(self) -> list[Size]:
        """All that are captured, the largest first, so that each finds its memory in what the one before left."""
        rows = self.row_sizes()
        found = [Size(n, n, False, True) for n in rows]
        if self._sharing:
            found += [Size(n, n, True, True) for n in shared_sizes(rows)]
        for tokens in (n for n in self.token_sizes() if n <= self._most_tokens):
            most = min(tokens, _MOST_SAMPLES, self._max_num_seqs)
            halves = {most, min(tokens // 2, most)} if 256 <= tokens <= _MOST_SAMPLES else {most}
            found += [Size(tokens, samples, False, False) for samples in halves]
            if self._sharing and tokens in (128, 256, 512, MOST_TOKENS):
                found.append(Size(tokens, most, True, False))
        return sorted(found, reverse=True)

    def row_sizes(self) -> list[int]:
        """Numbers of rows that decode steps are padded to."""
        ladder = [1, 2, 4, 8, *range(16, 257, 16), *range(288, 513, 32), *range(576, 1 << 16, 64)]
        return [size for size in ladder if size < self._max_num_seqs] + [self._max_num_seqs]

    @staticmethod
    def token_sizes() -> list[int]:
        """Numbers of tokens that other steps are padded to."""
        return [32, *range(64, MOST_TOKENS + 1, 64)]

    def capture(self, step: Callable[[Size], torch.Tensor], report: Callable[[float], None]) -> None:
        """Capture every size in one memory pool; `step` launches all of one and returns its logits."""
        pool, sizes = torch.cuda.graph_pool_handle(), self.sizes()
        for i, size in enumerate(sizes):
            graph = torch.cuda.CUDAGraph()
            with torch.inference_mode(), torch.cuda.graph(graph, pool=pool):
                logits = not_owning(step(size))
            self.add(Captured(size, graph, logits))
            report((i + 1) / len(sizes))
        torch.cuda.synchronize()

    def add(self, captured: Captured) -> None:
        """From now on steps may be padded to its size."""
        self._captured[captured.size] = captured
        bisect.insort(self._ladders.setdefault((captured.size.shared, captured.size.single), []), captured.size)

    def find(self, plan: StepPlan, samples: int, shared: bool) -> Captured | None:
        """The smallest graph that a step with so many samples fits, if one does."""
        tokens = plan.num_tokens
        single = tokens == len(plan.rows) == samples
        ladder = self._ladders.get((shared, single), [])
        if not ladder or (not single and (plan.prompt_logprobs or plan.pooling or self._too_many_pairs(plan))):
            return None
        tiles = 0 if single else self.tiles.count(plan)
        for size in ladder[bisect.bisect_left(ladder, (tokens,)) :]:
            if size.samples >= samples and self.tiles.room(size.tokens) >= tiles:
                return self._captured[size]
        return None

    def _too_many_pairs(self, plan: StepPlan) -> bool:
        long = plan.query_lens > 1
        seq_lens = (plan.context_lens + plan.query_lens)[long].astype(np.int64)
        return self._few_pairs and int((plan.query_lens[long] * seq_lens).sum()) > _MOST_PAIRS

    def clear(self) -> None:
        """Let go of their memory."""
        self._captured, self._ladders = {}, {}
