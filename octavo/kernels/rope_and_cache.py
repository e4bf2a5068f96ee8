"""Rotary embedding of queries and keys, and the write of keys and values to their pages."""

from __future__ import annotations

import torch

from octavo.kernels import native


def rope_and_cache(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    kv_scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    *,
    keep_keys: bool = False,
) -> torch.Tensor:
    """Rotate, write k and v, return q.

    Args:
        qkv: [T, (num_heads + 2 num_kv_heads) head_dim]; pairs to rotate are (i, i + head_dim / 2).
        cos_sin: float32 [max positions, head_dim], cosines then sines.
        positions: int32 [T].
        slot_mapping: int64 [T], page * page_size + offset; -1 writes nothing.
        k_cache, v_cache: [num_pages, num_kv_heads, page_size, head_dim], of any float type.
        kv_scales: on a GPU, with pages of e4m3, float32 [num_kv_heads] each: key = stored * scale.
        keep_keys: rotated keys overwrite those in `qkv` too.

    Returns:
        q, rotated: [T, num_heads, head_dim].
    """
    if qkv.is_cuda:
        from octavo.kernels.triton import rope_and_cache as triton
        from octavo.kernels.triton.launch import use_pdl

        where = (cos_sin, positions, slot_mapping, k_cache, v_cache)
        k_scale, v_scale = kv_scales or (None, None)
        return triton.rope_and_cache(
            qkv,
            *where,
            num_heads,
            num_kv_heads,
            head_dim,
            k_scale=k_scale,
            v_scale=v_scale,
            keep_keys=keep_keys,
            pdl=use_pdl(qkv.device),
        )
    if native.usable(qkv, cos_sin) and native.usable_caches(k_cache, v_cache) and not keep_keys:
        return native.rope_and_cache(
            qkv, cos_sin, positions, slot_mapping, k_cache, v_cache, num_heads, num_kv_heads, head_dim
        )
    count, page_size = qkv.shape[0], k_cache.shape[2]
    heads = qkv.view(count, num_heads + 2 * num_kv_heads, head_dim)
    turned, values = heads[:, : num_heads + num_kv_heads], heads[:, num_heads + num_kv_heads :]
    cos, sin = cos_sin[positions.long()][:, None].to(qkv.dtype).chunk(2, dim=-1)
    first, second = turned.chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    if keep_keys:
        heads[:, num_heads : num_heads + num_kv_heads] = turned[:, num_heads:]
    written = slot_mapping >= 0
    slots = slot_mapping[written]
    k_cache[slots // page_size, :, slots % page_size] = turned[written, num_heads:].to(k_cache.dtype)
    v_cache[slots // page_size, :, slots % page_size] = values[written].to(v_cache.dtype)
    return turned[:, :num_heads]
