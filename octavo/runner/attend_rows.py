"""A GPU step's attention, put together from kernels that each attend for some of the rows."""

from __future__ import annotations

from collections.abc import Callable

import torch

from octavo.attention import AttentionMetadata
from octavo.kernels.triton.invariant_attention import InvariantAttention
from octavo.kernels.triton.paged_extend import PagedExtend
from octavo.layers.batch import Attend, KVScales

AttendRows = Callable[..., None]
"""(q, keys, values, scale, out, and of e4m3 pages k_scale and v_scale): writes `out` for its rows."""


def attention_of(*parts: AttendRows | None) -> Attend:
    """A layer's attention from what attends for some of the rows each."""

    def attend(
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        _: AttentionMetadata,
        scale: float,
        kv_scales: KVScales | None,
    ) -> torch.Tensor:
        out = torch.empty_like(q)
        pages = {} if kv_scales is None else {"k_scale": kv_scales[0], "v_scale": kv_scales[1]}
        for part in parts:
            if part is not None:
                part(q, keys, values, scale, out, **pages)
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
