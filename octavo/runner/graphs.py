"""Decode steps recorded once and replayed: a step of few sequences is then one call, not a few hundred.

A step whose rows all decode has one shape for each number of rows. Its inputs are copied to where the recording read
them. What cannot be recorded (a layer that computes with torch, say) runs as ever, which is also what `enforce_eager`
asks for.
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
from octavo.runner.rows import RowTable

logger = logging.getLogger(__name__)

MAX_ROWS = 16
"""Above it the calls cost little beside the work, and the recordings' logits would take memory."""

Forward = Callable[[torch.Tensor, AttentionMetadata], torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Graph:
    token_ids: torch.Tensor
    metadata: AttentionMetadata
    logits: torch.Tensor
    replay: Callable[[], None]


class DecodeGraphs:
    """One recording for each number of rows, made when it is first needed.

    Args:
        forward: (token ids, metadata) → logits [R, V].
    """

    def __init__(self, forward: Forward, rows: RowTable):
        self._forward, self._rows = forward, rows
        self._arena = Arena()
        self._graphs: dict[int, _Graph] = {}
        self._recordable = native.available()

    def run(self, plan: StepPlan) -> torch.Tensor | None:
        """Logits [R, V] of a step of decodes, valid until the next step; None if the step is not for a recording."""
        count = len(plan.rows)
        if not self._recordable or count > MAX_ROWS or plan.num_tokens != count or plan.prompt_logprobs:
            return None
        if not plan.sample.all():
            return None
        graph = self._graphs.get(count)
        if graph is not None:
            self._fill(plan, graph.token_ids, graph.metadata)
            graph.replay()
            return graph.logits
        return self._record(plan, count)

    def _record(self, plan: StepPlan, count: int) -> torch.Tensor | None:
        token_ids, metadata = _inputs(count, self._rows)
        self._fill(plan, token_ids, metadata)
        try:
            logits, replay = native.capture(lambda: self._forward(token_ids, metadata), self._arena)
        except NotRecordable as error:
            logger.info("decode steps are not recorded: %s", error)
            self._recordable = False
            return None
        self._graphs[count] = _Graph(token_ids, metadata, logits, replay)
        return logits

    def _fill(self, plan: StepPlan, token_ids: torch.Tensor, metadata: AttentionMetadata) -> None:
        positions, size, table = plan.context_lens, self._rows.page_size, metadata.block_table.numpy()
        np.take(self._rows.block_table.numpy(), plan.rows, axis=0, out=table, mode="clip")
        pages = table[np.arange(len(positions)), positions // size]
        np.multiply(pages, size, out=metadata.slot_mapping.numpy(), dtype=np.int64)
        metadata.slot_mapping.numpy()[:] += positions % size
        metadata.positions.numpy()[:] = positions
        np.add(positions, 1, out=metadata.seq_lens.numpy())
        token_ids.numpy()[:] = self._rows.token_ids(plan).numpy()


def _inputs(count: int, rows: RowTable) -> tuple[torch.Tensor, AttentionMetadata]:
    """Tensors of a step of `count` decodes, to be filled."""
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
