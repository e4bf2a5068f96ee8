# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Rotate queries and keys, and write keys and values to their pages (Su et al. 2021, arXiv 2104.09864).

The halves of a head are the real and imaginary parts (GPT-NeoX order). Optional RMS norm of each query and key head
before it (Qwen 3, Gemma 3). All in float32, rounded once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.launch import pdl_options
from octavo.kernels.triton.quantize import E4M3_MAX


@triton.jit
def rope_and_cache_kernel(
    qkv, cos_sin, positions, slots, q_out, k_cache, v_cache, q_norm, k_norm, k_scale, v_scale, eps,
    stride_qkv, stride_page, stride_head,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HALF: tl.constexpr, PAGE: tl.constexpr,
    NORM: tl.constexpr, FP8: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK heads of one token; heads are numbered through queries, keys, values."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    dims = tl.arange(0, HALF)
    half = HEAD_DIM // 2
    position = tl.load(positions + token).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    cos = tl.load(cos_sin + position * HEAD_DIM + dims, mask=dims < half, other=0.0)[None, :]
    sin = tl.load(cos_sin + position * HEAD_DIM + half + dims, mask=dims < half, other=0.0)[None, :]
    if PDL:
        tl.extra.cuda.gdc_wait()
    mask = (head < HEADS + 2 * KV_HEADS)[:, None] & (dims < half)[None, :]
    here = qkv + token * stride_qkv + head[:, None] * HEAD_DIM + dims[None, :]
    real = tl.load(here, mask=mask, other=0.0).to(tl.float32)
    imag = tl.load(here + half, mask=mask, other=0.0).to(tl.float32)
    is_query = (head < HEADS)[:, None]
    is_value = (head >= HEADS + KV_HEADS)[:, None]
    if NORM:
        inverse = tl.rsqrt((tl.sum(real * real, 1) + tl.sum(imag * imag, 1)) / HEAD_DIM + eps)[:, None]
        at = dims[None, :] + tl.zeros_like(head)[:, None]
        inside = (dims < half)[None, :]
        query_real = tl.load(q_norm + at, mask=inside & is_query, other=0.0).to(tl.float32)
        query_imag = tl.load(q_norm + half + at, mask=inside & is_query, other=0.0).to(tl.float32)
        key_real = tl.load(k_norm + at, mask=inside & ~is_query, other=0.0).to(tl.float32)
        key_imag = tl.load(k_norm + half + at, mask=inside & ~is_query, other=0.0).to(tl.float32)
        real = tl.where(is_value, real, real * inverse * tl.where(is_query, query_real, key_real))
        imag = tl.where(is_value, imag, imag * inverse * tl.where(is_query, query_imag, key_imag))
    turned_real = tl.where(is_value, real, real * cos - imag * sin)
    turned_imag = tl.where(is_value, imag, imag * cos + real * sin)

    out = q_out + (token * HEADS + head[:, None]) * HEAD_DIM + dims[None, :]
    tl.store(out, turned_real.to(q_out.dtype.element_ty), mask=mask & is_query)
    tl.store(out + half, turned_imag.to(q_out.dtype.element_ty), mask=mask & is_query)

    if KEEP:
        tl.store(here, turned_real.to(qkv.dtype.element_ty), mask=mask & ~is_query & ~is_value)
        tl.store(here + half, turned_imag.to(qkv.dtype.element_ty), mask=mask & ~is_query & ~is_value)
    written = mask & ~is_query & (slot >= 0)
    kv_head = tl.where(is_value, head[:, None] - HEADS - KV_HEADS, head[:, None] - HEADS)
    if FP8:
        scale = tl.load(k_scale + kv_head, mask=written & ~is_value, other=1.0)
        scale *= tl.load(v_scale + kv_head, mask=written & is_value, other=1.0)
        turned_real = tl.clamp(turned_real / scale, -E4M3_MAX, E4M3_MAX)
        turned_imag = tl.clamp(turned_imag / scale, -E4M3_MAX, E4M3_MAX)
    stored_real = turned_real.to(k_cache.dtype.element_ty)
    stored_imag = turned_imag.to(k_cache.dtype.element_ty)
    at = (slot // PAGE) * stride_page + kv_head.to(tl.int64) * stride_head + (slot % PAGE) * HEAD_DIM + dims[None, :]
    tl.store(k_cache + at, stored_real, mask=written & ~is_value)
    tl.store(k_cache + at + half, stored_imag, mask=written & ~is_value)
    tl.store(v_cache + at, stored_real, mask=written & is_value)
    tl.store(v_cache + at + half, stored_imag, mask=written & is_value)


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
    *,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    keep_keys: bool = False,
    pdl: bool = False,
) -> torch.Tensor:
    """Returns the rotated queries [T, num_heads, head_dim], of qkv's type.

    Args:
        qkv: [T, (num_heads + 2 num_kv_heads) * head_dim]: queries, keys, values. Rows may be strided.
        cos_sin: float32 [positions, head_dim]: cosines, then sines.
        positions: integers [T].
        slot_mapping: integers [T]: page * page_size + slot. Nothing is written for a negative slot.
        k_cache, v_cache: [pages, num_kv_heads, page_size, head_dim] with equal strides; qkv's type, or
            float8_e4m3fn with `k_scale` and `v_scale`, float32 [num_kv_heads]: value = stored * scale.
        q_norm, k_norm: [head_dim], both or neither.
        keep_keys: rotated keys overwrite those in `qkv` too.
    """
    tokens = qkv.shape[0]
    q = torch.empty(tokens, num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    if tokens:
        block = 8
        rope_and_cache_kernel[(tokens, triton.cdiv(num_heads + 2 * num_kv_heads, block))](
            qkv, cos_sin, positions, slot_mapping, q, k_cache, v_cache, q_norm, k_norm, k_scale, v_scale, eps,
            qkv.stride(0), k_cache.stride(0), k_cache.stride(1),
            HEADS=num_heads, KV_HEADS=num_kv_heads, HEAD_DIM=head_dim, HALF=triton.next_power_of_2(head_dim // 2),
            PAGE=k_cache.shape[2], NORM=q_norm is not None, FP8=k_cache.dtype == torch.float8_e4m3fn, KEEP=keep_keys,
            BLOCK=block, PDL=pdl, num_warps=2, **pdl_options(pdl),
        )  # fmt: skip
    return q
