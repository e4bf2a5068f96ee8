# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Decode attention of rows that share leading pages: the shared keys are read once for all of them.

Rows whose first pages are the same ones form a group. The queries of a group's members, times the query heads of a
kv head, are packed into tiles of BLOCK_M rows that attend to the shared keys without any mask; `PagedDecode` then
starts each member behind those keys, and from the state that its queries had reached there (Juravsky et al. 2024,
arXiv 2402.05099; Ye et al. 2024, arXiv 2501.01005, "composable formats")::

    keys    | shared 0 ... L |                       members of the group
            | SharedPrefix   | tail of a | PagedDecode
            | (one tile of   | tail of b | PagedDecode
            |  a, b, c, ...) | tail of c | PagedDecode

The state handed over is that of the online softmax (maximum, sum, unnormalised output, all float32), so that the
tail goes on where the shared part ended: nothing is left to merge. The work of all (tile, kv head) pairs is cut into
equal shares of keys as in `paged_decode`, whose plan it uses: a tile is a row, its members are the row's queries.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from octavo.kernels.triton.attention_math import key_offsets, online_softmax, transform_scores
from octavo.kernels.triton.launch import pdl_options, pipeline_stages
from octavo.kernels.triton.paged_decode import merge_pieces, piece_slot, plan_kernel

Int32Array = npt.NDArray[np.int32]
_MERGE_ROWS = 16  # of a tile, merged at a time


@triton.jit
def shared_tiles(
    q, k_cache, v_cache, table, head, num_keys, first_tile, last_tile, stride_page, stride_head, scale_log2, softcap,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr,
    SOFTCAP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Key tiles [first_tile, last_tile), all seen by all queries → (maximum [M], sum [M], output [M, D])."""
    dims = tl.arange(0, BLOCK_D)
    slopes = tl.zeros([BLOCK_M], tl.float32)
    positions = tl.zeros([BLOCK_M], tl.int32)
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for tile in tl.range(first_tile, last_tile, num_stages=STAGES):
        keys = tile * TILE + tl.arange(0, TILE)
        at = key_offsets(table, tile * TILE, num_keys, head, stride_page, stride_head, HEAD_DIM, PAGE, TILE)
        offsets = at[:, None] + dims[None, :]
        if BLOCK_D != HEAD_DIM:
            mask = (dims < HEAD_DIM)[None, :]
            k = tl.load(k_cache + offsets, mask=mask, other=0.0)
            v = tl.load(v_cache + offsets, mask=mask, other=0.0)
        else:
            k = tl.load(k_cache + offsets)
            v = tl.load(v_cache + offsets)
        dots = tl.dot(q, tl.trans(k.to(q.dtype)))
        scores = transform_scores(dots, keys, positions, slopes, scale_log2, softcap, SOFTCAP, False)
        weights, factor, maximum, total = online_softmax(scores, maximum, total, scale_log2, SOFTCAP)
        acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc * factor[:, None])
    return maximum, total, acc


@triton.jit
def store_state(
    state, stats, members, maximum, total, acc, m0, head, num_real,
    GROUP: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Hand the state of rows m0... of a tile over to their tails."""
    m = m0 + tl.arange(0, M)
    dims = tl.arange(0, BLOCK_D)
    member = tl.load(members + m // GROUP, mask=m < num_real, other=0)
    at = member.to(tl.int64) * (HEADS * GROUP) + head * GROUP + m % GROUP
    tl.store(stats + at * 2, maximum, mask=m < num_real)
    tl.store(stats + at * 2 + 1, total, mask=m < num_real)
    mask = (m < num_real)[:, None] & (dims < HEAD_DIM)[None, :]
    tl.store(state + at[:, None] * HEAD_DIM + dims[None, :], acc, mask=mask)


@triton.jit
def shared_prefix_kernel(
    q, k_cache, v_cache, state, stats, block_table, members, tile_starts, tile_lens, plan, acc_space, stat_space,
    arrivals, k_scale, scale_log2, softcap, stride_q, stride_page, stride_head, stride_table,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    MERGE_M: tl.constexpr, UNROLL: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr, SOFTCAP: tl.constexpr,
    FP8: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: its share of the line of key tiles, as segments that each belong to one (query tile, kv head)."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    here = plan + tl.program_id(0) * 4
    row = tl.load(here)
    offset = tl.load(here + 1)
    count = tl.load(here + 2)
    share = tl.load(here + 3)
    unit = tl.program_id(0) * share
    end = unit + count
    if PDL:  # as in `decode_kernel`: only the plan and the groups are older than the kernel before this one
        tl.extra.cuda.gdc_wait()
    m = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    while unit < end:
        num_keys = tl.load(tile_lens + row)
        start = tl.load(tile_starts + row)
        num_real = (tl.load(tile_starts + row + 1) - start) * GROUP
        units = num_keys // TILE
        taken = 0
        if (units > 0) & (num_real > 0):
            head = offset // units
            first = offset - head * units
            taken = tl.minimum(units - first, end - unit)
            leader = tl.load(members + start)
            member = tl.load(members + start + m // GROUP, mask=m < num_real, other=0)
            at = member.to(tl.int64)[:, None] * stride_q + ((head * GROUP + m % GROUP) * HEAD_DIM)[:, None]
            mask = (m < num_real)[:, None] & (dims < HEAD_DIM)[None, :]
            queries = tl.load(q + at + dims[None, :], mask=mask, other=0.0)
            factor = scale_log2
            if FP8:  # as in `decode_kernel`; v_scale is left to the tail
                queries = tl.clamp(queries.to(tl.float32), -65504.0, 65504.0).to(tl.float16)
                factor = scale_log2 * tl.load(k_scale + head)
            maximum, total, acc = shared_tiles(
                queries, k_cache, v_cache, block_table + leader.to(tl.int64) * stride_table, head, num_keys,
                first, first + taken, stride_page, stride_head, factor, softcap,
                HEAD_DIM, BLOCK_D, BLOCK_M, PAGE, TILE, SOFTCAP, STAGES,
            )  # fmt: skip
            first_unit = unit - first
            pieces = (first_unit + units - 1) // share - first_unit // share + 1
            if pieces == 1:
                store_state(
                    state, stats, members + start, maximum, total, acc, 0, head, num_real,
                    GROUP, HEADS, HEAD_DIM, BLOCK_D, BLOCK_M,
                )  # fmt: skip
            else:
                piece = unit // share - first_unit // share
                slot = piece_slot(piece, first_unit, share, False).to(tl.int64)
                real = m < num_real
                tl.store(stat_space + slot * (2 * BLOCK_M) + m, maximum, mask=real)
                tl.store(stat_space + slot * (2 * BLOCK_M) + BLOCK_M + m, total, mask=real)
                rows_at = acc_space + (slot * BLOCK_M + m)[:, None] * BLOCK_D + dims[None, :]
                tl.store(rows_at, acc, mask=real[:, None])
                # The last to arrive merges, as in `decode_kernel`.
                tl.debug_barrier()
                counter = arrivals + row * HEADS + head
                arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
                if arrived == pieces - 1:
                    for m0 in range(0, num_real, MERGE_M):
                        maximum2, total2, acc2 = merge_pieces(
                            acc_space + m0 * BLOCK_D, stat_space + m0, first_unit, share, pieces, num_real - m0,
                            BLOCK_M, BLOCK_D, MERGE_M, UNROLL, False,
                        )  # fmt: skip
                        store_state(
                            state, stats, members + start, maximum2, total2, acc2, m0, head, num_real,
                            GROUP, HEADS, HEAD_DIM, BLOCK_D, MERGE_M,
                        )  # fmt: skip
                    tl.store(counter, 0)
        unit += taken
        offset += taken
        if offset >= units * HEADS:
            row += 1
            offset = 0


def pack_groups(
    out: Int32Array, members: Int32Array, counts: Int32Array, lengths: Int32Array, members_per_tile: int
) -> None:
    """Write a step's groups as `SharedPrefix.groups` wants them.

    Args:
        out: int32 [4 * max_rows + 1], as `SharedPrefix.groups`.
        members: rows of the step, group after group; every row at most once.
        counts, lengths: int32 [G]; members of each group, and its shared keys.
        members_per_tile: `SharedPrefix.members_per_tile`.
    """
    max_rows = (len(out) - 1) // 4
    shared_lens, order, lens, starts = (
        out[:max_rows], out[max_rows : 2 * max_rows], out[2 * max_rows : 3 * max_rows], out[3 * max_rows :],
    )  # fmt: skip
    shared_lens[:], lens[:] = 0, 0
    shared_lens[members] = np.repeat(lengths, counts)
    order[: len(members)] = members
    tiles = -(-counts // members_per_tile)
    group = np.repeat(np.arange(len(counts)), tiles)
    within = np.arange(len(group)) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    lens[: len(group)] = lengths[group]
    starts[0] = 0
    np.cumsum(np.minimum(members_per_tile, counts[group] - within * members_per_tile), out=starts[1 : len(group) + 1])
    starts[len(group) + 1 :] = len(members)


def shared_prefix_tuning() -> dict[str, int]:
    """Tuning of `SharedPrefix` on an H100: two programs of 64 rows for each of its 132 multiprocessors."""
    return {"block_m": 64, "num_warps": 4, "num_programs": 264}


class SharedPrefix:
    """The shared part of decode attention: its options, the groups of a step, its plan and its workspace.

    Once a step fill `groups` and call `plan`; then call once a layer, and `PagedDecode` after it with `shared=`. No
    launch depends on the groups, so one graph serves any grouping, also none. One stream at a time.

    Attributes:
        members_per_tile: rows whose queries fill a tile.
        tile: keys of a tile; shared lengths are multiples of it.
        groups: int32 [4 * max_rows + 1] on the device, to be filled from `pack_groups`.

    Args:
        num_kv_heads, group, head_dim, page_size, softcap: as for `PagedDecode`. There is no window.
        max_rows: the most rows of a step.
        block_m: rows of a tile, members times `group`; raised to hold one member.
        num_programs, tile, num_warps, num_stages, min_share: tuning, as for `PagedDecode`; `tile` must be its tile.
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
        softcap: float = 0.0,
        block_m: int = 64,
        num_programs: int = 264,
        tile: int = 64,
        num_warps: int = 4,
        num_stages: int = 0,
        min_share: int = 8,
    ):
        block_m, block_d = max(block_m, triton.next_power_of_2(group)), triton.next_power_of_2(head_dim)
        self.members_per_tile, self.tile = block_m // group, tile
        self._rows, self._programs, self._softcap = max_rows, num_programs, softcap
        self._planning = {
            "HEADS": num_kv_heads, "MAX_QUERY": self.members_per_tile, "WINDOW": 0, "TILE": tile, "UNIT": 1,
            "MIN_SHARE": min_share,
        }  # fmt: skip
        merge_m = min(block_m, _MERGE_ROWS)
        self._options = {
            "HEADS": num_kv_heads, "GROUP": group, "HEAD_DIM": head_dim, "BLOCK_D": block_d, "BLOCK_M": block_m,
            "MERGE_M": merge_m, "UNROLL": 4, "PAGE": page_size, "TILE": tile, "SOFTCAP": softcap > 0,
            "STAGES": num_stages or pipeline_stages(), "num_warps": num_warps,
        }  # fmt: skip
        self.groups = torch.zeros(4 * max_rows + 1, dtype=torch.int32, device=device)
        self._shared_lens, self._members, self._tile_lens = self.groups[: 3 * max_rows].view(3, max_rows)
        self._tile_starts = self.groups[3 * max_rows :]
        self._state = torch.empty(max_rows, num_kv_heads * group, head_dim, dtype=torch.float32, device=device)
        self._state_stats = torch.empty(max_rows, num_kv_heads * group, 2, dtype=torch.float32, device=device)
        self._plan = torch.zeros(num_programs, 4, dtype=torch.int32, device=device)
        self._acc = torch.empty(2 * num_programs, block_m, block_d, dtype=torch.float32, device=device)
        self._stats = torch.empty(2 * num_programs, 2, block_m, dtype=torch.float32, device=device)
        self._arrivals = torch.zeros(max_rows * num_kv_heads, dtype=torch.int32, device=device)

    @property
    def state(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `PagedDecode` takes as `shared`: int32 [max_rows] of keys that a row need not see again, and float32
        [max_rows, heads, head_dim] and [max_rows, heads, 2] of the softmax's state behind them. Rows are tokens.
        """
        return self._shared_lens, self._state, self._state_stats

    @property
    def workspace_bytes(self) -> int:
        parts = (self.groups, self._state, self._state_stats, self._plan, self._acc, self._stats, self._arrivals)
        return sum(part.nbytes for part in parts)

    def plan(self) -> None:
        """Share out the shared keys of this step's `groups`."""
        block = 8
        plan_kernel[(triton.cdiv(self._programs, block),)](
            self._plan, self._tile_lens, self._tile_starts, None, self._rows, self._programs,
            ROWS=triton.next_power_of_2(max(2, self._rows)), BLOCK=block, num_warps=4, **self._planning,
        )  # fmt: skip

    def __call__(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        block_table: torch.Tensor,
        scale: float,
        *,
        k_scale: torch.Tensor | None = None,
        pdl: bool = False,
    ) -> None:
        """Attend from all groups to their shared keys; the result is left in `state`.

        Args:
            q: [T, heads, head_dim]; row r of the step has one query, token r.
            k_cache, v_cache, block_table, scale, k_scale, pdl: as for `PagedDecode`, which is given v_scale.
        """
        shared_prefix_kernel[(self._programs,)](
            q, k_cache, v_cache, self._state, self._state_stats, block_table,
            self._members, self._tile_starts, self._tile_lens, self._plan, self._acc, self._stats, self._arrivals,
            k_scale, scale * 1.4426950408889634, self._softcap,
            q.stride(0), k_cache.stride(0), k_cache.stride(1), block_table.stride(0),
            FP8=k_cache.dtype == torch.float8_e4m3fn, PDL=pdl, **self._options, **pdl_options(pdl),
        )  # fmt: skip
