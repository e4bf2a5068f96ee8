"""Paged attention: what a step says of its sequences, and who computes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.kernels.paged_attention import paged_attention


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """T tokens of R sequences.

    Attributes:
        query_start_loc: int32 [R + 1]; seq_lens: int32 [R], context and queries together.
        block_table: int32 [R, max blocks]; entries past a sequence's pages are never read.
        slot_mapping: int64 [T], where each token's key and value are written; -1 is nowhere.
        positions: int32 [T].
    """

    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    slot_mapping: torch.Tensor
    positions: torch.Tensor
    max_query_len: int
    max_seq_len: int


def attend(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    kv_scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    qkv: torch.Tensor | None = None,
) -> torch.Tensor:
    """q [T, num_heads, head_dim] → the same shape; see `octavo.kernels.paged_attention`.

    Pages of e4m3, which have `kv_scales`, are served on a GPU only. What q came from is not needed here.
    """
    return paged_attention(
        q, k_cache, v_cache, metadata.block_table, metadata.query_start_loc, metadata.seq_lens, scale
    )


def attend_alone(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    kv_scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    qkv: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `attend`, with every token computed as if it were decoded: a prompt's come out the same, to the bit."""
    if metadata.max_query_len <= 1:
        return attend(q, k_cache, v_cache, metadata, scale, kv_scales)
    counts = metadata.query_start_loc.diff()
    row = torch.repeat_interleave(torch.arange(len(counts)), counts.long())
    starts = torch.arange(len(row) + 1, dtype=torch.int32)
    return paged_attention(
        q, k_cache, v_cache, metadata.block_table[row], starts, (metadata.positions + 1).to(torch.int32), scale
    )
