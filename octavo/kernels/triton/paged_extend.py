# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Causal attention of long queries (prompts and their chunks) over paged keys and values, a cached prefix included.

One program computes BLOCK_M rows of one kv head: BLOCK_M / group query tokens of one sequence times the query heads
that share the kv head. Only tiles that the causal or the window's edge crosses are masked. Flash attention's loop
(Dao 2023, arXiv 2307.08691)::

              keys ->   window edge        causal edge
    query tile  |  (skipped)  | masked | unmasked ... | masked |
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from octavo.kernels.triton.attention_math import LN2, key_offsets, online_softmax, transform_scores, visible
from octavo.kernels.triton.launch import pipeline_stages


@triton.jit
def extend_loop(
    q, maximum, total, acc, positions, slopes, k_cache, v_cache, table, head, seq_len, first, last,
    stride_page, stride_head, scale_log2, softcap,
    MASKED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAGE: tl.constexpr, BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Key tiles [first, last); without MASKED every query sees all of their keys."""
    dims = tl.arange(0, BLOCK_D)
    for tile in tl.range(first, last, num_stages=STAGES):
        keys = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        at = key_offsets(table, tile * BLOCK_N, seq_len, head, stride_page, stride_head, HEAD_DIM, PAGE, BLOCK_N)
        offsets = at[:, None] + dims[None, :]
        if MASKED:  # what lies past the end may be NaN, which a weight of zero would not undo
            mask = (keys < seq_len)[:, None] & (dims < HEAD_DIM)[None, :]
            k = tl.load(k_cache + offsets, mask=mask, other=0.0)
            v = tl.load(v_cache + offsets, mask=mask, other=0.0)
        elif BLOCK_D != HEAD_DIM:
            mask = (dims < HEAD_DIM)[None, :]
            k = tl.load(k_cache + offsets, mask=mask, other=0.0)
            v = tl.load(v_cache + offsets, mask=mask, other=0.0)
        else:
            k = tl.load(k_cache + offsets)
            v = tl.load(v_cache + offsets)
        dots = tl.dot(q, tl.trans(k.to(q.dtype)))
        scores = transform_scores(dots, keys, positions, slopes, scale_log2, softcap, SOFTCAP, ALIBI)
        if MASKED:
            scores = tl.where(visible(keys, positions, WINDOW), scores, float("-inf"))
        weights, factor, maximum, total = online_softmax(scores, maximum, total, scale_log2, SOFTCAP or ALIBI)
        acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc * factor[:, None])
    return maximum, total, acc


@triton.jit
def extend_kernel(
    q, k_cache, v_cache, out, lse, block_table, seq_lens, query_start_loc, tiles, k_scale, v_scale, alibi_slopes,
    scale_log2, softcap, stride_q, stride_out, stride_page, stride_head, stride_table,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr, FP8: tl.constexpr, LSE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One query tile of one kv head; tiles[i] = (row, tile within the row's queries), row -1 for none."""
    entry = tl.program_id(0) // HEADS
    head = tl.program_id(0) % HEADS
    row = tl.load(tiles + entry * 2)
    if row < 0:
        return
    first_token = tl.load(tiles + entry * 2 + 1) * BLOCK_Q
    seq_len = tl.load(seq_lens + row)
    token0 = tl.load(query_start_loc + row)
    query_len = tl.load(query_start_loc + row + 1) - token0
    context = seq_len - query_len
    m = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    token = first_token + m // GROUP
    real = (m < BLOCK_Q * GROUP) & (token < query_len)
    query_head = head * GROUP + m % GROUP
    mask = real[:, None] & (dims < HEAD_DIM)[None, :]
    at = (token0 + token).to(tl.int64)[:, None] * stride_q + (query_head * HEAD_DIM)[:, None] + dims[None, :]
    queries = tl.load(q + at, mask=mask, other=0.0)
    out_scale = 1.0
    if FP8:  # e4m3 is exact in float16, and cheaper to reach than bfloat16
        queries = tl.clamp(queries.to(tl.float32), -65504.0, 65504.0).to(tl.float16)
        scale_log2 = scale_log2 * tl.load(k_scale + head)
        out_scale = tl.load(v_scale + head)
    slopes = tl.zeros([BLOCK_M], tl.float32)
    if ALIBI:
        slopes = tl.load(alibi_slopes + query_head)

    # Queries of the tile stand at [low, high]; rows that are not real would see past the end and are kept within.
    low = context + first_token
    high = context + tl.minimum(first_token + BLOCK_Q, query_len) - 1
    positions = tl.minimum(context + token, high)
    last = high // BLOCK_N + 1
    full_last = (low + 1) // BLOCK_N
    first = low * 0
    full_first = first
    if WINDOW > 0:
        first = tl.maximum(low - WINDOW + 1, 0) // BLOCK_N
        full_first = (tl.maximum(high - WINDOW + 1, 0) + BLOCK_N - 1) // BLOCK_N
        full_first = tl.minimum(tl.maximum(full_first, first), last)
        full_last = tl.maximum(full_last, full_first)
    table = block_table + row.to(tl.int64) * stride_table
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if WINDOW > 0:
        maximum, total, acc = extend_loop(
            queries, maximum, total, acc, positions, slopes, k_cache, v_cache, table, head, seq_len, first, full_first,
            stride_page, stride_head, scale_log2, softcap,
            True, HEAD_DIM, BLOCK_D, PAGE, BLOCK_N, WINDOW, SOFTCAP, ALIBI, STAGES,
        )  # fmt: skip
    maximum, total, acc = extend_loop(
        queries, maximum, total, acc, positions, slopes, k_cache, v_cache, table, head, seq_len, full_first, full_last,
        stride_page, stride_head, scale_log2, softcap,
        False, HEAD_DIM, BLOCK_D, PAGE, BLOCK_N, WINDOW, SOFTCAP, ALIBI, STAGES,
    )  # fmt: skip
    maximum, total, acc = extend_loop(
        queries, maximum, total, acc, positions, slopes, k_cache, v_cache, table, head, seq_len, full_last, last,
        stride_page, stride_head, scale_log2, softcap,
        True, HEAD_DIM, BLOCK_D, PAGE, BLOCK_N, WINDOW, SOFTCAP, ALIBI, STAGES,
    )  # fmt: skip

    result = acc * (out_scale / total)[:, None]
    at = (token0 + token).to(tl.int64)[:, None] * stride_out + (query_head * HEAD_DIM)[:, None] + dims[None, :]
    tl.store(out + at, result.to(out.dtype.element_ty), mask=mask)
    if LSE:
        tl.store(lse + (token0 + token) * (HEADS * GROUP) + query_head, (maximum + tl.log2(total)) * LN2, mask=real)


def plan_extend(
    query_lens: npt.NDArray[np.int32],
    context_lens: npt.NDArray[np.int32],
    tokens_per_tile: int,
    min_query_len: int = 1,
    window: int = 0,
) -> npt.NDArray[np.int32]:
    """int32 [N, 2] of (row, tile of queries): the work of `PagedExtend`, longest first so that short ones fill the end.

    Args:
        query_lens, context_lens: [R]; rows with fewer than `min_query_len` query tokens are left out.
        tokens_per_tile: `PagedExtend.tokens_per_tile`.
    """
    counts = np.where(query_lens >= max(1, min_query_len), -(-query_lens // tokens_per_tile), 0)
    rows = np.repeat(np.arange(len(query_lens)), counts)
    tiles = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    keys = context_lens[rows] + np.minimum((tiles + 1) * tokens_per_tile, query_lens[rows])
    if window:
        keys = np.minimum(keys, window + tokens_per_tile)
    order = np.argsort(-keys, kind="stable")
    return np.stack([rows[order], tiles[order]], axis=1).astype(np.int32)


class PagedExtend:
    """Prompt attention of one layer kind: its compile-time options. Arguments as for `PagedDecode`.

    Args:
        block_m: rows of a tile, query tokens times `group`; at least `group`.
        block_n: keys of a tile.
    """

    def __init__(
        self,
        *,
        num_kv_heads: int,
        group: int,
        head_dim: int,
        page_size: int,
        window: int = 0,
        softcap: float = 0.0,
        block_m: int = 128,
        block_n: int = 64,
        num_warps: int = 8,
        num_stages: int = 0,
    ):
        self.tokens_per_tile = block_m // group
        self._heads, self._softcap = num_kv_heads, softcap
        self._options = {
            "HEADS": num_kv_heads, "GROUP": group, "HEAD_DIM": head_dim, "BLOCK_D": triton.next_power_of_2(head_dim),
            "BLOCK_M": block_m, "BLOCK_Q": self.tokens_per_tile, "BLOCK_N": block_n, "PAGE": page_size,
            "WINDOW": window, "SOFTCAP": softcap > 0, "STAGES": num_stages or pipeline_stages(), "num_warps": num_warps,
        }  # fmt: skip

    def __call__(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        block_table: torch.Tensor,
        seq_lens: torch.Tensor,
        query_start_loc: torch.Tensor,
        tiles: torch.Tensor,
        scale: float,
        out: torch.Tensor,
        *,
        lse: torch.Tensor | None = None,
        k_scale: torch.Tensor | None = None,
        v_scale: torch.Tensor | None = None,
        alibi_slopes: torch.Tensor | None = None,
    ) -> None:
        """Attend; `tiles` is what `plan_extend` made, on the device, padded at will with rows of -1.

        The rest as for `PagedDecode.__call__`. Rows outside `tiles` are not written.
        """
        fp8 = k_cache.dtype == torch.float8_e4m3fn
        extend_kernel[(tiles.shape[0] * self._heads,)](
            q, k_cache, v_cache, out, lse, block_table, seq_lens, query_start_loc, tiles,
            k_scale, v_scale, alibi_slopes, scale * 1.4426950408889634, self._softcap,
            q.stride(0), out.stride(0), k_cache.stride(0), k_cache.stride(1), block_table.stride(0),
            ALIBI=alibi_slopes is not None, FP8=fp8, LSE=lse is not None,
            **self._options,
        )  # fmt: skip
