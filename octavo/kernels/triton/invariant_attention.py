# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Paged attention in which a token's result is the same, to the bit, in any batch and in any chunk of its prompt.

Decode steps and prompts run the same compiled kernel, with the same tile of rows (query tokens times the heads of a
group), so a row is computed by the same instructions in either. Keys are cut at the same places always: into tiles,
and tiles into units whose partial results are joined in order::

    keys   | tile tile tile tile | tile tile tile tile | tile tile .
           '------ unit 0 ------''------ unit 1 ------''-- unit 2 -'
    result   join(join(join(nothing, unit 0), unit 1), unit 2)

Steps of few rows give each unit to a program of its own, and the last to arrive joins what they left in memory; steps
of many rows, and prompts, let one program go through the units and join them as it goes. The join's multiplications
and additions are written out as fused ones, so that both come to the same. A tile that a row does not see changes its
sums by nothing: its weights are zeros, and its rescaling is by one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.launch import pipeline_stages
from octavo.kernels.triton.paged_decode import attend_tiles


@triton.jit
def join(maximum, total, acc, piece_max, piece_sum, piece_acc):
    """The softmax state of some keys and of those after them → of both; exact if either has seen no key."""
    new_max = tl.maximum(maximum, piece_max)
    safe = tl.where(new_max == float("-inf"), 0.0, new_max)
    factor = tl.exp2(maximum - safe)
    weight = tl.exp2(piece_max - safe)
    total = tl.fma(total, factor, weight * piece_sum)
    wide_factor = tl.broadcast_to(factor[:, None], acc.shape)
    acc = tl.fma(acc, wide_factor, weight[:, None] * piece_acc)
    return new_max, total, acc


@triton.jit
def invariant_attention_kernel(
    q, k_cache, v_cache, out, block_table, seq_lens, query_start_loc, tiles, acc_space, stat_space, arrivals,
    k_scale, v_scale, scale_log2, softcap, stride_q, stride_out, stride_page, stride_head, stride_table,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_Q: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr, PAGE: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, FP8: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one kv head: one unit of its keys if the grid has a program for each, else all."""
    entry = tl.program_id(0) // HEADS
    head = tl.program_id(0) % HEADS
    row = tl.load(tiles + entry * 2)
    if row < 0:
        return
    seq_len = tl.load(seq_lens + row)
    token0 = tl.load(query_start_loc + row)
    query_len = tl.load(query_start_loc + row + 1) - token0
    first_token = tl.load(tiles + entry * 2 + 1) * BLOCK_Q
    if first_token >= query_len:  # a row that only fills the batch
        return
    high = seq_len - query_len + tl.minimum(first_token + BLOCK_Q, query_len) - 1  # the last query's place
    low = seq_len - query_len + first_token
    units = high // (TILE * UNIT) + 1
    part = tl.program_id(1)
    first_unit = 0
    last_unit = units
    if tl.num_programs(1) > 1:
        first_unit = part
        last_unit = tl.minimum(part + 1, units)
    if first_unit >= last_unit:
        return
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
    positions = tl.minimum(seq_len - query_len + token, high)
    slopes = tl.zeros([BLOCK_M], tl.float32)
    first_tile = 0
    if WINDOW > 0:
        first_tile = tl.maximum(low - WINDOW + 1, 0) // TILE
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    unseen, nothing = maximum, total
    for unit in range(first_unit, last_unit):
        piece_max, piece_sum, piece_acc = attend_tiles(
            queries, unseen, nothing, tl.zeros([BLOCK_M, BLOCK_D], tl.float32), positions, slopes,
            k_cache, v_cache, block_table + row.to(tl.int64) * stride_table, head, seq_len,
            tl.maximum(unit * UNIT, first_tile), tl.minimum((unit + 1) * UNIT, high // TILE + 1),
            stride_page, stride_head, scale_log2, softcap,
            HEAD_DIM, BLOCK_D, PAGE, TILE, WINDOW, SOFTCAP, False, STAGES,
        )  # fmt: skip
        maximum, total, acc = join(maximum, total, acc, piece_max, piece_sum, piece_acc)
    if last_unit - first_unit < units:
        group = tl.program_id(0).to(tl.int64)
        slots = group * tl.num_programs(1)
        stats = stat_space + slots * (2 * BLOCK_M) + m
        rows_at = acc_space + (slots * BLOCK_M + m)[:, None] * BLOCK_D + dims[None, :]
        tl.store(stats + part * (2 * BLOCK_M), maximum, mask=real)
        tl.store(stats + part * (2 * BLOCK_M) + BLOCK_M, total, mask=real)
        tl.store(rows_at + part * (BLOCK_M * BLOCK_D), acc, mask=real[:, None])
        # Every thread's stores, then the barrier, then one thread's releasing add: whoever counts the last arrival
        # has acquired all pieces. It leaves the counter at zero for the next launch.
        tl.debug_barrier()
        arrived = tl.atomic_add(arrivals + group, 1, sem="acq_rel", scope="gpu")
        if arrived != units - 1:
            return
        tl.store(arrivals + group, 0)
        maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for unit in range(units):
            piece_max = tl.load(stats + unit * (2 * BLOCK_M), mask=real, other=float("-inf"), cache_modifier=".cg")
            piece_sum = tl.load(stats + unit * (2 * BLOCK_M) + BLOCK_M, mask=real, other=0.0, cache_modifier=".cg")
            piece_acc = tl.load(
                rows_at + unit * (BLOCK_M * BLOCK_D), mask=real[:, None], other=0.0, cache_modifier=".cg"
            )
            maximum, total, acc = join(maximum, total, acc, piece_max, piece_sum, piece_acc)
    result = acc * (out_scale / total)[:, None]
    at = (token0 + token).to(tl.int64)[:, None] * stride_out + (query_head * HEAD_DIM)[:, None] + dims[None, :]
    tl.store(out + at, result.to(out.dtype.element_ty), mask=mask)


class InvariantAttention:
    """Attention of one layer kind, for decode steps and prompts alike. One stream at a time may use an instance.

    Args:
        num_kv_heads, group, head_dim, page_size, window, softcap: as for `PagedDecode`.
        max_keys: the longest sequence.
        block_m, tile, num_warps, num_stages: one shape for all; num_stages 0 is `launch.pipeline_stages()`.
        unit: keys that are always summed up together, at least `tile`; 0 makes eighths of `max_keys`, 1,024 or more.
        split_up_to: tiles of queries times kv heads up to which each unit gets a program of its own.
    """

    def __init__(
        self,
        *,
        num_kv_heads: int,
        group: int,
        head_dim: int,
        page_size: int,
        max_keys: int,
        device: torch.device,
        window: int = 0,
        softcap: float = 0.0,
        block_m: int = 64,
        tile: int = 64,
        unit: int = 0,
        num_warps: int = 4,
        num_stages: int = 0,
        split_up_to: int = 264,
    ):
        block_m = max(block_m, triton.next_power_of_2(group))
        self.tokens_per_tile = block_m // group
        tiles_of_unit = -(-(unit or max(1024, max_keys // 8)) // tile)
        self._heads, self._softcap = num_kv_heads, softcap
        self._parts = max(1, -(-max_keys // (tiles_of_unit * tile)))
        self._split_up_to = split_up_to if self._parts > 1 else 0
        block_d = triton.next_power_of_2(head_dim)
        self._options = {
            "HEADS": num_kv_heads, "GROUP": group, "HEAD_DIM": head_dim, "BLOCK_D": block_d, "BLOCK_M": block_m,
            "BLOCK_Q": self.tokens_per_tile, "TILE": tile, "UNIT": tiles_of_unit, "PAGE": page_size, "WINDOW": window,
            "SOFTCAP": softcap > 0, "STAGES": num_stages or pipeline_stages(), "num_warps": num_warps,
        }  # fmt: skip
        slots = self._split_up_to * self._parts
        self._acc = torch.empty(slots, block_m, block_d, dtype=torch.float32, device=device)
        self._stats = torch.empty(slots, 2, block_m, dtype=torch.float32, device=device)
        self._arrivals = torch.zeros(max(1, self._split_up_to), dtype=torch.int32, device=device)

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
        k_scale: torch.Tensor | None = None,
        v_scale: torch.Tensor | None = None,
    ) -> None:
        """Attend; all as for `PagedExtend`. A tile of a row without query tokens does nothing."""
        groups = tiles.shape[0] * self._heads
        if groups == 0:
            return
        parts = self._parts if groups <= self._split_up_to else 1
        invariant_attention_kernel[(groups, parts)](
            q, k_cache, v_cache, out, block_table, seq_lens, query_start_loc, tiles,
            self._acc, self._stats, self._arrivals, k_scale, v_scale, scale * 1.4426950408889634, self._softcap,
            q.stride(0), out.stride(0), k_cache.stride(0), k_cache.stride(1), block_table.stride(0),
            FP8=k_cache.dtype == torch.float8_e4m3fn, **self._options,
        )  # fmt: skip
