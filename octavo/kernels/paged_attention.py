"""Causal attention of packed queries over paged keys and values."""

from __future__ import annotations

import torch

from octavo.kernels import native


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Each sequence's last queries attend to all its keys up to their own place.

    Args:
        q: [T, num_heads, head_dim].
        k_cache, v_cache: [num_pages, num_kv_heads, page_size, head_dim].
        block_table: int32 [R, max blocks].
        query_start_loc: int32 [R + 1], where each sequence's queries begin in q.
        seq_lens: int32 [R], context and queries together.

    Returns:
        [T, num_heads, head_dim], of q's type.
    """
    if native.usable(q) and native.usable_caches(k_cache, v_cache) and q.shape[2] % 16 == 0:
        return native.paged_attention(q, k_cache, v_cache, block_table.contiguous(), query_start_loc, seq_lens, scale)
    out = torch.empty_like(q)
    starts, lengths = query_start_loc.tolist(), seq_lens.tolist()
    for row, length in enumerate(lengths):
        part = slice(starts[row], starts[row + 1])
        pages = block_table[row, : -(-length // k_cache.shape[2])].long()
        keys, values = (_gather(cache, pages, length, q.dtype) for cache in (k_cache, v_cache))
        out[part] = _attend(q[part], keys, values, scale)
    return out


def _gather(cache: torch.Tensor, pages: torch.Tensor, length: int, dtype: torch.dtype) -> torch.Tensor:
    """[num_kv_heads, length, head_dim]."""
    taken = cache[pages].transpose(0, 1)
    return taken.reshape(taken.shape[0], -1, taken.shape[3])[:, :length].to(dtype)


def _attend(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
    """q [n, num_heads, D] at the end of a sequence of keys [num_kv_heads, length, D]."""
    count, num_heads, head_dim = q.shape
    num_kv_heads, length = keys.shape[:2]
    grouped = q.view(count, num_kv_heads, num_heads // num_kv_heads, head_dim).permute(1, 2, 0, 3)
    scores = grouped @ keys[:, None].transpose(-1, -2) * scale
    if count > 1:
        places = torch.arange(length)
        hidden = places[None, :] > places[length - count :, None]
        scores = scores.masked_fill(hidden, float("-inf"))
    attended = scores.softmax(-1) @ values[:, None]
    return attended.permute(2, 0, 1, 3).reshape(count, num_heads, head_dim)
