"""Steps of few tokens recorded once and replayed: such a step is then one call, not a few hundred.

Every token is a row of its own, with the pages of its sequence and its place in it, as if it were decoded: so there is
one shape for each number of tokens, whether they are of as many sequences or some belong to one (what a grammar left no
choice about, the end of a prompt). All keys and values of a layer are written before any token attends to them. Inputs
are copied to where the recording read them. What cannot be recorded (a layer that computes with torch, say) runs as
ever, which is also what `enforce_eager` asks for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from octavo.attention import AttentionMetadata
from octavo.kernels import native
from octavo.kernels.native.tape import Arena, NotRecordable
from octavo.plan import StepPlan
from octavo.runner.rows import RowTable, ramps

logger = logging.getLogger(__name__)

MAX_TOKENS = 32
"""Above it the calls cost little beside the work."""
_EXACT = 16  # numbers of tokens above it are made even, with a token that belongs nowhere

Forward = Callable[[torch.Tensor, AttentionMetadata], torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Graph:
    token_ids: torch.Tensor
    metadata: AttentionMetadata
    logits: torch.Tensor
    replay: Callable[[], None]


class Recordings:
    """One for each number of tokens, made when it is first needed.

    Args:
        forward: (token ids, metadata) → logits [T, V].
    """

    def __init__(self, forward: Forward, rows: RowTable):
        self._forward, self._rows = forward, rows
        self._arena = Arena()
        self._graphs: dict[int, _Graph] = {}
        self._recordable = native.available()

    def run(self, plan: StepPlan) -> torch.Tensor | None:
        """Logits [R, V] of each sequence's last token, valid until the next step; None if the step is not for a
        recording."""
        count = plan.num_tokens
        if not self._recordable or count > MAX_TOKENS or plan.prompt_logprobs or not plan.sample.all():
            return None
        size = count if count <= _EXACT else count + count % 2
        graph = self._graphs.get(size)
        if graph is not None:
            self._fill(plan, graph.token_ids, graph.metadata)
            graph.replay()
            logits = graph.logits
        else:
            recorded = self._record(plan, size)
            if recorded is None:
                return None
            logits = recorded
        if count == len(plan.rows):
            return logits[:count]
        return logits[torch.from_numpy(np.cumsum(plan.query_lens) - 1)]

    def _record(self, plan: StepPlan, count: int) -> torch.Tensor | None:
        token_ids, metadata = _inputs(count, self._rows)
        self._fill(plan, token_ids, metadata)
        try:
            logits, replay = native.capture(lambda: self._forward(token_ids, metadata), self._arena)
        except NotRecordable as error:
            logger.info("decode steps are not recorded: %s", error)
            self._recordable = False
            return None
        logits = self._arena.unheld(logits)  # only read between this replay and the next one, whichever that is
        self._graphs[count] = _Graph(token_ids, metadata, logits, replay)
        return logits

    def _fill(self, plan: StepPlan, token_ids: torch.Tensor, metadata: AttentionMetadata) -> None:
        rows, positions = plan.rows, plan.context_lens
        count, size = plan.num_tokens, self._rows.page_size
        if count > len(rows):
            rows = np.repeat(rows, plan.query_lens)
            positions = np.repeat(positions, plan.query_lens) + ramps(plan.query_lens)
        table, slots = metadata.block_table.numpy(), metadata.slot_mapping.numpy()
        np.take(self._rows.block_table.numpy(), rows, axis=0, out=table[:count], mode="clip")
        np.multiply(table[np.arange(count), positions // size], size, out=slots[:count], dtype=np.int64)
        slots[:count] += positions % size
        slots[count:] = -1
        metadata.positions.numpy()[:count] = positions
        np.add(positions, 1, out=metadata.seq_lens.numpy()[:count])
        token_ids.numpy()[:count] = self._rows.token_ids(plan).numpy()


def _inputs(count: int, rows: RowTable) -> tuple[torch.Tensor, AttentionMetadata]:
    """Tensors of a step of `count` tokens, to be filled; of those that are not, positions stay within their pages."""
    metadata = AttentionMetadata(
        query_start_loc=torch.arange(count + 1, dtype=torch.int32),
        seq_lens=torch.ones(count, dtype=torch.int32),
        block_table=torch.zeros((count, rows.block_table.shape[1]), dtype=torch.int32),
        slot_mapping=torch.zeros(count, dtype=torch.int64),
        positions=torch.zeros(count, dtype=torch.int32),
        max_query_len=1,
        max_seq_len=rows.block_table.shape[1] * rows.page_size,
    )
    return torch.zeros(count, dtype=torch.int64), metadata
