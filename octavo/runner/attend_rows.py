"""A GPU step's attention, put together from kernels that each attend for some of the rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from octavo.attention import AttentionMetadata
from octavo.kernels.triton.invariant_attention import InvariantAttention
from octavo.kernels.triton.paged_extend import PagedExtend
from octavo.layers.batch import Attend, KVScales
from octavo.plan import Int32Array

AttendRows = Callable[..., None]
"""(q, keys, values, scale, out, and of e4m3 pages k_scale and v_scale): writes `out` for its rows."""
AttendFresh = Callable[[torch.Tensor, torch.Tensor, float, torch.Tensor], None]
"""(q, qkv with rotated keys, scale, out): writes `out` for rows whose keys are all of this step."""


def fresh_from(query_lens: Int32Array, context_lens: Int32Array) -> int:
    """The first of a step's rows from which on all have several tokens and no context."""
    other = np.flatnonzero((query_lens == 1) | (context_lens > 0))
    return int(other[-1]) + 1 if len(other) else 0


def attention_of(*parts: AttendRows | None, fresh: AttendFresh | None = None) -> Attend:
    """A layer's attention from what attends for some of the rows each."""

    def attend(
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        _: AttentionMetadata,
        scale: float,
        kv_scales: KVScales | None,
        qkv: torch.Tensor,
    ) -> torch.Tensor:
        out = torch.empty_like(q)
        pages = {} if kv_scales is None else {"k_scale": kv_scales[0], "v_scale": kv_scales[1]}
        for part in parts:
            if part is not None:
                part(q, keys, values, scale, out, **pages)
        if fresh is not None:
            fresh(q, qkv, scale, out)
        return out

    return attend


def over_tiles(
    kernel: PagedExtend | InvariantAttention, metadata: AttentionMetadata, tiles: torch.Tensor
) -> AttendRows:
    """What attends for the tiles of queries, int32 [N, 2] as `plan_extend` makes them."""
    where = (metadata.block_table, metadata.seq_lens, metadata.query_start_loc, tiles)

    def attend(
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scale: float,
        out: torch.Tensor,
        **pages: torch.Tensor,
    ) -> None:
        kernel(q, keys, values, *where, scale, out, **pages)

    return attend
