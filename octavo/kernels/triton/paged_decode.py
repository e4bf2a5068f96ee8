# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Attention of short queries (1 to about 8 tokens a row) over paged keys and values, split over the keys.

The keys of all (row, kv head) pairs are laid out in one line of tiles, rows outermost, and cut into equal shares, one
a program, so that any mix of lengths keeps every multiprocessor busy to the end (stream-K, Osama et al. 2023,
arXiv 2301.03598; for attention Sanovar et al. 2024, arXiv 2405.10480)::

    row 0, head 0  | row 0, head 1  | row 1, head 0     | row 1, head 1     |
    t t t t t t t t t t t t t t t t t t t t t t t t t t t t t t t t t t t t t
    '- program 0 -''- program 1 -''- program 2 -''- program 3 -''-- ...

`plan_kernel` finds each program's first row from the lengths on the device, once a step; all layers reuse it. The
grid never changes, so one CUDA graph serves every mix of lengths. A pair that is cut is merged by the program that
arrives last, in the order of the keys: results do not depend on timing. All query heads of a kv head, and all query
tokens of a row, are rows of one tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.attention_math import LN2, key_offsets, online_softmax, transform_scores, visible
from octavo.kernels.triton.launch import pdl_options, pipeline_stages

_MERGE_ELEMENTS = 4096  # of partial results in flight at once


@triton.jit
def row_units(
    seq_len, query_len, shared, MAX_QUERY: tl.constexpr, WINDOW: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr
):
    """(first tile that is to be read for the row, tiles, units of UNIT tiles); none for rows that are not ours."""
    ours = (query_len > 0) & (query_len <= MAX_QUERY) & (seq_len > 0)
    first = shared // TILE
    if WINDOW > 0:
        first = tl.maximum(seq_len - query_len - WINDOW + 1, 0) // TILE
    tiles = tl.where(ours, (seq_len + TILE - 1) // TILE - first, 0)
    return first, tiles, (tiles + UNIT - 1) // UNIT


@triton.jit(do_not_specialize=["num_rows"])  # one compiled kernel for any number
def plan_kernel(
    plan, seq_lens, query_start_loc, shared_lens, num_rows, num_programs,
    HEADS: tl.constexpr, MAX_QUERY: tl.constexpr, WINDOW: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr,
    MIN_SHARE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write plan[p] = (first row, unit within that row's heads, number of units, units a share) for BLOCK programs."""
    rows = tl.arange(0, ROWS)
    seq_len = tl.load(seq_lens + rows, mask=rows < num_rows, other=0)
    start = tl.load(query_start_loc + rows, mask=rows < num_rows, other=0)
    stop = tl.load(query_start_loc + rows + 1, mask=rows < num_rows, other=0)
    shared = tl.zeros_like(seq_len)
    if shared_lens is not None:
        shared = tl.load(shared_lens + rows, mask=rows < num_rows, other=0)
    _, _, units = row_units(seq_len, stop - start, shared, MAX_QUERY, WINDOW, TILE, UNIT)
    units *= HEADS
    ends = tl.cumsum(units, 0)
    total = tl.sum(units, 0)
    share = tl.maximum((total + num_programs - 1) // num_programs, MIN_SHARE)
    programs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    begin = tl.minimum(programs * share, total)
    before = ends[None, :] <= begin[:, None]
    row = tl.sum(before.to(tl.int32), 1)
    offset = begin - tl.sum(tl.where(before, units[None, :], 0), 1)
    here = plan + programs * 4
    mask = programs < num_programs
    tl.store(here, row, mask=mask)
    tl.store(here + 1, offset, mask=mask)
    tl.store(here + 2, tl.minimum(share, total - begin), mask=mask)
    tl.store(here + 3, tl.zeros_like(programs) + share, mask=mask)


@triton.jit
def attend_tiles(
    q, maximum, total, acc, positions, slopes, k_cache, v_cache, table, head, seq_len, first_tile, last_tile,
    stride_page, stride_head, scale_log2, softcap,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Take tiles [first_tile, last_tile) of one row and kv head into (maximum [M], sum [M], output [M, D])."""
    dims = tl.arange(0, BLOCK_D)
    for tile in tl.range(first_tile, last_tile, num_stages=STAGES):
        keys = tile * TILE + tl.arange(0, TILE)
        at = key_offsets(table, tile * TILE, seq_len, head, stride_page, stride_head, HEAD_DIM, PAGE, TILE)
        offsets = at[:, None] + dims[None, :]
        # Slots past the end may hold anything, even NaN, which a weight of zero would not undo.
        mask = (keys < seq_len)[:, None]
        if BLOCK_D != HEAD_DIM:
            mask = mask & (dims < HEAD_DIM)[None, :]
        k = tl.load(k_cache + offsets, mask=mask, other=0.0)
        v = tl.load(v_cache + offsets, mask=mask, other=0.0)
        dots = tl.dot(q, tl.trans(k.to(q.dtype)))
        scores = transform_scores(dots, keys, positions, slopes, scale_log2, softcap, SOFTCAP, ALIBI)
        scores = tl.where(visible(keys, positions, WINDOW), scores, float("-inf"))
        weights, factor, maximum, total = online_softmax(scores, maximum, total, scale_log2, SOFTCAP or ALIBI)
        acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc * factor[:, None])
    return maximum, total, acc


@triton.jit
def load_state(
    state, state_stats, token0, head, num_real,
    GROUP: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """(maximum [M], sum [M], output [M, D]) that a row's queries reached behind the keys they share with others."""
    m = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    at = (token0 + m // GROUP).to(tl.int64) * (HEADS * GROUP) + head * GROUP + m % GROUP
    maximum = tl.load(state_stats + at * 2, mask=m < num_real, other=float("-inf"))
    total = tl.load(state_stats + at * 2 + 1, mask=m < num_real, other=0.0)
    mask = (m < num_real)[:, None] & (dims < HEAD_DIM)[None, :]
    return maximum, total, tl.load(state + at[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0.0)


@triton.jit
def piece_slot(piece, first_unit, share, FIXED: tl.constexpr):
    """Workspace slot of a pair's piece: by unit, or two a program (its first segment, and its last)."""
    if FIXED:
        return first_unit + piece
    program = first_unit // share + piece
    return program * 2 + tl.where((piece == 0) & (first_unit % share != 0), 1, 0)


@triton.jit
def merge_pieces(
    acc_space, stat_space, first_unit, share, pieces, num_real,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, MERGE_M: tl.constexpr, UNROLL: tl.constexpr, FIXED: tl.constexpr,
):  # fmt: skip
    """All pieces of one (row, kv head), in order → (maximum, sum, unnormalised output) of MERGE_M tile rows.

    Piece by piece, so that no thread waits for another; UNROLL of them have their loads in flight together.
    """
    m = tl.arange(0, MERGE_M)
    dims = tl.arange(0, BLOCK_D)
    maximum = tl.full([MERGE_M], float("-inf"), tl.float32)
    total = tl.zeros([MERGE_M], tl.float32)
    acc = tl.zeros([MERGE_M, BLOCK_D], tl.float32)
    for start in tl.range(0, pieces, UNROLL):
        for i in tl.static_range(UNROLL):
            piece = start + i
            slot = piece_slot(piece, first_unit, share, FIXED).to(tl.int64)
            mask = (piece < pieces) & (m < num_real)
            stats = stat_space + slot * (2 * BLOCK_M) + m
            piece_max = tl.load(stats, mask=mask, other=float("-inf"), cache_modifier=".cg")
            piece_sum = tl.load(stats + BLOCK_M, mask=mask, other=0.0, cache_modifier=".cg")
            at = acc_space + (slot * BLOCK_M + m)[:, None] * BLOCK_D + dims[None, :]
            piece_acc = tl.load(at, mask=mask[:, None], other=0.0, cache_modifier=".cg")
            new_max = tl.maximum(maximum, piece_max)
            safe = tl.where(new_max == float("-inf"), 0.0, new_max)
            weight = tl.exp2(piece_max - safe)
            factor = tl.exp2(maximum - safe)
            total = total * factor + weight * piece_sum
            acc = acc * factor[:, None] + weight[:, None] * piece_acc
            maximum = new_max
    return maximum, total, acc


@triton.jit
def store_rows(
    out, lse, maximum, total, acc, out_scale, token0, head, num_real, stride_out,
    GROUP: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, M: tl.constexpr,
    LSE: tl.constexpr,
):  # fmt: skip
    """Write a unit's finished rows, and the logarithms of their sums if they are wanted."""
    m = tl.arange(0, M)
    dims = tl.arange(0, BLOCK_D)
    token = token0 + m // GROUP
    query_head = head * GROUP + m % GROUP
    result = acc * (out_scale / total)[:, None]
    at = out + token.to(tl.int64)[:, None] * stride_out + (query_head * HEAD_DIM)[:, None] + dims[None, :]
    tl.store(at, result.to(out.dtype.element_ty), mask=(m < num_real)[:, None] & (dims < HEAD_DIM)[None, :])
    if LSE:
        tl.store(lse + token * (HEADS * GROUP) + query_head, (maximum + tl.log2(total)) * LN2, mask=m < num_real)


@triton.jit
def decode_kernel(
    q, k_cache, v_cache, out, lse, block_table, seq_lens, query_start_loc, shared_lens, state, state_stats,
    plan, acc_space, stat_space, arrivals, k_scale, v_scale, alibi_slopes, scale_log2, softcap,
    stride_q, stride_out, stride_page, stride_head, stride_table,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    MERGE_M: tl.constexpr, UNROLL: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr,
    MAX_QUERY: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, FP8: tl.constexpr,
    LSE: tl.constexpr, FIXED: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: its share of the line of tiles, as segments that each belong to one (row, kv head)."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    here = plan + tl.program_id(0) * 4
    row = tl.load(here)
    offset = tl.load(here + 1)
    count = tl.load(here + 2)
    share = tl.load(here + 3)
    unit = tl.program_id(0) * share
    end = unit + count
    if PDL:  # the plan is older than the kernel before this one; queries, keys and the workspace are not
        tl.extra.cuda.gdc_wait()
    m = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    while unit < end:
        seq_len = tl.load(seq_lens + row)
        token0 = tl.load(query_start_loc + row)
        query_len = tl.load(query_start_loc + row + 1) - token0
        shared = seq_len * 0
        if shared_lens is not None:
            shared = tl.load(shared_lens + row)
        first, tiles, units = row_units(seq_len, query_len, shared, MAX_QUERY, WINDOW, TILE, UNIT)
        taken = 0
        if units > 0:
            head = offset // units
            at_unit = offset - head * units
            taken = tl.minimum(units - at_unit, end - unit)
            if FIXED:
                taken = 1
            num_real = query_len * GROUP
            token = m // GROUP
            at = (token0 + token).to(tl.int64)[:, None] * stride_q + ((head * GROUP + m % GROUP) * HEAD_DIM)[:, None]
            mask = (m < num_real)[:, None] & (dims < HEAD_DIM)[None, :]
            queries = tl.load(q + at + dims[None, :], mask=mask, other=0.0)
            factor = scale_log2
            out_scale = 1.0
            if FP8:  # e4m3 is exact in float16, and cheaper to reach than bfloat16
                queries = tl.clamp(queries.to(tl.float32), -65504.0, 65504.0).to(tl.float16)
                factor = scale_log2 * tl.load(k_scale + head)
                out_scale = tl.load(v_scale + head)
            slopes = tl.zeros([BLOCK_M], tl.float32)
            if ALIBI:
                slopes = tl.load(alibi_slopes + head * GROUP + m % GROUP)
            maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
            total = tl.zeros([BLOCK_M], tl.float32)
            acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
            if shared_lens is not None:  # the first piece goes on where the shared keys ended
                known = tl.where((shared > 0) & (at_unit == 0), num_real, 0)
                maximum, total, acc = load_state(
                    state, state_stats, token0, head, known, GROUP, HEADS, HEAD_DIM, BLOCK_D, BLOCK_M
                )  # fmt: skip
            maximum, total, acc = attend_tiles(
                queries, maximum, total, acc, seq_len - query_len + token, slopes, k_cache, v_cache,
                block_table + row.to(tl.int64) * stride_table, head, seq_len,
                first + at_unit * UNIT, first + tl.minimum((at_unit + taken) * UNIT, tiles),
                stride_page, stride_head, factor, softcap,
                HEAD_DIM, BLOCK_D, PAGE, TILE, WINDOW, SOFTCAP, ALIBI, STAGES,
            )  # fmt: skip
            first_unit = unit - at_unit
            pieces = units
            if not FIXED:
                pieces = (first_unit + units - 1) // share - first_unit // share + 1
            if pieces == 1:
                store_rows(
                    out, lse, maximum, total, acc, out_scale, token0, head, num_real, stride_out,
                    GROUP, HEADS, HEAD_DIM, BLOCK_D, BLOCK_M, LSE,
                )  # fmt: skip
            else:
                piece = at_unit
                if not FIXED:
                    piece = unit // share - first_unit // share
                slot = piece_slot(piece, first_unit, share, FIXED).to(tl.int64)
                real = m < num_real
                tl.store(stat_space + slot * (2 * BLOCK_M) + m, maximum, mask=real)
                tl.store(stat_space + slot * (2 * BLOCK_M) + BLOCK_M + m, total, mask=real)
                rows_at = acc_space + (slot * BLOCK_M + m)[:, None] * BLOCK_D + dims[None, :]
                tl.store(rows_at, acc, mask=real[:, None])
                # Every thread's stores, then the barrier, then one thread's releasing add: whoever counts the last
                # arrival has acquired all pieces. It leaves the counter at zero for the next launch.
                tl.debug_barrier()
                counter = arrivals + row * HEADS + head
                arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
                if arrived == pieces - 1:
                    maximum2, total2, acc2 = merge_pieces(
                        acc_space, stat_space, first_unit, share, pieces, num_real,
                        BLOCK_M, BLOCK_D, MERGE_M, UNROLL, FIXED,
                    )  # fmt: skip
                    store_rows(
                        out, lse, maximum2, total2, acc2, out_scale, token0, head, num_real, stride_out,
                        GROUP, HEADS, HEAD_DIM, BLOCK_D, MERGE_M, LSE,
                    )  # fmt: skip
                    tl.store(counter, 0)
        unit += taken
        offset += taken
        if offset >= units * HEADS:
            row += 1
            offset = 0


def decode_tuning(max_rows: int, fp8: bool = False) -> dict[str, int]:
    """Tuning of `PagedDecode` on an H100 (132 multiprocessors) for steps, or graphs, of up to `max_rows` rows
    of head size 128 or less.

    From `benchmarks/results/gpu-fused-h100.json`: three programs a multiprocessor, each with one tile on its way, keep
    memory busier than two with three (20 to 25 % for mixed lengths of some hundred keys, 5 % for long ones); e4m3 needs
    more warps to convert than its smaller tiles leave in flight.
    """
    if fp8:
        if max_rows <= 8:
            return {"tile": 64, "num_stages": 7, "num_programs": 132}
        if max_rows <= 48:
            return {"tile": 64, "num_stages": 7, "num_programs": 264}
        return {"tile": 64, "num_stages": 5, "num_programs": 528, "maxnreg": 128}
    return {"tile": 64, "num_stages": 2, "num_programs": 396}


class PagedDecode:
    """Decode attention of one layer kind: its compile-time options, its plan and its workspace.

    `plan` once a step, then call once a layer. Both only launch kernels: no allocation, no synchronisation, so both
    may be captured in a graph, which then serves any lengths. One stream at a time may use an instance.

    Args:
        num_kv_heads, group: query heads are num_kv_heads * group, those of one kv head adjacent.
        max_rows: the most rows of a step.
        max_query_len: rows with more query tokens (and rows with none, or of length 0) are left alone: their output
            is not written.
        window: a query sees only the last `window` keys, itself included; 0 is no limit.
        softcap: scores become softcap * tanh(score / softcap); 0 is no cap.
        fixed_split: 0 lets the batch decide where keys are cut. Otherwise they are cut every `fixed_split` keys
            (rounded up to tiles), so that a row's result is bitwise the same in any batch; workspace then
            grows with `max_keys`, the most keys of a step, over all rows.
        num_programs: programs that share the work; a few for each multiprocessor.
        tile, num_warps, num_stages, min_share, maxnreg: tuning; num_stages 0 is `launch.pipeline_stages()`.
    """

    def __init__(
        self,
        *,
        num_kv_heads: int,
        group: int,
        head_dim: int,
        page_size: int,
        max_rows: int,
        device: torch.device,
        max_query_len: int = 1,
        window: int = 0,
        softcap: float = 0.0,
        fixed_split: int = 0,
        max_keys: int = 0,
        num_programs: int = 396,
        tile: int = 64,
        num_warps: int = 4,
        num_stages: int = 0,
        min_share: int = 1,
        maxnreg: int | None = None,
    ):
        unit = max(1, -(-fixed_split // tile))
        self._rows, self._programs, self._softcap = max_rows, num_programs, softcap
        self._shareable = not window and not fixed_split
        block_m, block_d = max(16, triton.next_power_of_2(group * max_query_len)), triton.next_power_of_2(head_dim)
        merge_m = triton.next_power_of_2(group * max_query_len)
        shared = {"HEADS": num_kv_heads, "MAX_QUERY": max_query_len, "WINDOW": window, "TILE": tile, "UNIT": unit}
        self._planning = shared | {"MIN_SHARE": min_share}
        unroll = max(1, min(8, _MERGE_ELEMENTS // (merge_m * block_d)))
        self._options = shared | {
            "GROUP": group, "HEAD_DIM": head_dim, "BLOCK_D": block_d, "BLOCK_M": block_m, "MERGE_M": merge_m,
            "UNROLL": unroll, "PAGE": page_size, "SOFTCAP": softcap > 0, "FIXED": fixed_split > 0,
            "STAGES": num_stages or pipeline_stages(), "num_warps": num_warps,
        } | ({"maxnreg": maxnreg} if maxnreg else {})  # fmt: skip
        slots = 2 * num_programs
        if fixed_split:
            slots = num_kv_heads * (-(-max_keys // (unit * tile)) + max_rows * (2 if window else 1))
        self.plan_buffer = torch.zeros(num_programs, 4, dtype=torch.int32, device=device)
        self._acc = torch.empty(slots, block_m, block_d, dtype=torch.float32, device=device)
        self._stats = torch.empty(slots, 2, block_m, dtype=torch.float32, device=device)
        self._arrivals = torch.zeros(max_rows * num_kv_heads, dtype=torch.int32, device=device)

    @property
    def workspace_bytes(self) -> int:
        return sum(t.nbytes for t in (self.plan_buffer, self._acc, self._stats, self._arrivals))

    def plan(
        self, seq_lens: torch.Tensor, query_start_loc: torch.Tensor, shared_lens: torch.Tensor | None = None
    ) -> None:
        """Share out the keys of this step. int32 [R], [R + 1] and, of keys that are left out, [R]; R <= max_rows."""
        block = 8
        plan_kernel[(triton.cdiv(self._programs, block),)](
            self.plan_buffer, seq_lens, query_start_loc, shared_lens, seq_lens.shape[0], self._programs,
            ROWS=triton.next_power_of_2(max(2, self._rows)), BLOCK=block, num_warps=4, **self._planning,
        )  # fmt: skip

    def __call__(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        block_table: torch.Tensor,
        seq_lens: torch.Tensor,
        query_start_loc: torch.Tensor,
        scale: float,
        out: torch.Tensor,
        *,
        lse: torch.Tensor | None = None,
        k_scale: torch.Tensor | None = None,
        v_scale: torch.Tensor | None = None,
        alibi_slopes: torch.Tensor | None = None,
        shared: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
        pdl: bool = False,
    ) -> None:
        """Attend with the lengths that were planned.

        Args:
            q, out: [T, heads, head_dim], heads and dims contiguous; bfloat16 or float16 (float32 too for `out`).
            k_cache, v_cache: [pages, kv heads, page_size, head_dim], slots and dims contiguous; q's type, or
                float8_e4m3fn with `k_scale` and `v_scale`, float32 [kv heads]: value = stored * scale.
            block_table: int32 [R, max_blocks], pages of each row in order.
            seq_lens, query_start_loc: int32 [R], [R + 1]; a row's queries are its last tokens.
            lse: float32 [T, heads], if given: natural logarithm of the sum of exponentials of the scores. With a
                float32 `out`, results over disjoint keys merge exactly from (out, lse).
            alibi_slopes: float32 [heads].
            shared: `SharedPrefix.state`, whose lengths were planned with: the first keys of a row, a multiple of
                `tile` and fewer than it has, are not read; the row goes on from the state behind them.
            pdl: start before the kernel before it ends (programmatic dependent launch, sm_90). That kernel must not
                be `plan`'s.
        """
        if shared is not None and not self._shareable:
            raise ValueError("rows with a window, or with fixed splits, cannot share the attention to their keys")
        fp8 = k_cache.dtype == torch.float8_e4m3fn
        decode_kernel[(self._programs,)](
            q, k_cache, v_cache, out, lse, block_table, seq_lens, query_start_loc, *(shared or (None,) * 3),
            self.plan_buffer, self._acc, self._stats, self._arrivals,
            k_scale, v_scale, alibi_slopes, scale * 1.4426950408889634, self._softcap,
            q.stride(0), out.stride(0), k_cache.stride(0), k_cache.stride(1), block_table.stride(0),
            ALIBI=alibi_slopes is not None, FP8=fp8, LSE=lse is not None, PDL=pdl, **self._options,
            **pdl_options(pdl),
        )  # fmt: skip
