# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""A step's inputs, built on the device from the rows' tables and the plan.

The plan crosses to the device as one int32 buffer, in one copy. All sizes and places are read from its header, so
that the same launches serve every step::

    header  | rows R | context R | query start R + 1 | source R | ids | runs [B, 4] | pages
    0..6                                              where in ids, or -1:
                                                      the row's last sampled token

Rows past R up to the launch's rows are given length 0, and tokens past T slot -1: a graph captured for more rows
and tokens serves fewer.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

_HEADER = 8  # number of rows, of tokens, of runs; offsets of context, query start, source, runs, pages
HEADER = tl.constexpr(_HEADER)

Int32Array = npt.NDArray[np.int32]


def packed_size(num_rows: int, num_ids: int, num_runs: int, num_pages: int) -> int:
    """int32 elements that `pack_step` needs."""
    return _HEADER + 4 * num_rows + 1 + num_ids + 4 * num_runs + num_pages


def pack_step(
    out: Int32Array,
    *,
    rows: Int32Array,
    query_lens: Int32Array,
    context_lens: Int32Array,
    from_host: npt.NDArray[np.bool_],
    token_ids: Int32Array,
    block_rows: Int32Array,
    block_starts: Int32Array,
    block_counts: Int32Array,
    block_pages: Int32Array,
) -> int:
    """Write the arrays of a `StepPlan` into `out` (pinned memory, say); returns how many elements were written.

    Raises:
        ValueError: `out` is too small; `packed_size` says how much is needed.
    """
    num_rows, num_runs = len(rows), len(block_rows)
    size = packed_size(num_rows, len(token_ids), num_runs, len(block_pages))
    if size > len(out):
        raise ValueError(f"the packed plan has {size} elements, the buffer {len(out)}")
    starts = np.zeros(num_rows + 1, np.int32)
    np.cumsum(query_lens, out=starts[1:])
    host_lens = np.where(from_host, query_lens, 0)
    sources = np.where(from_host, np.cumsum(host_lens) - host_lens, -1)
    runs = np.empty((num_runs, 4), np.int32)
    runs[:, 0], runs[:, 1], runs[:, 2] = block_rows, block_starts, block_counts
    runs[:, 3] = np.cumsum(block_counts) - block_counts
    parts = (rows, context_lens, starts, sources, token_ids, runs.reshape(-1), block_pages)
    ends = _HEADER + np.cumsum([len(part) for part in parts])
    out[:_HEADER] = (num_rows, starts[-1], num_runs, ends[0], ends[1], ends[2], ends[4], ends[5])
    at = _HEADER
    for part in parts:
        out[at : at + len(part)] = part
        at += len(part)
    return size


@triton.jit
def write_blocks_kernel(packed, block_table, stride_table, BLOCK: tl.constexpr):
    """Each program writes every num_programs-th run of new pages into the rows' block tables."""
    num_runs = tl.load(packed + 2)
    runs = packed + tl.load(packed + 6)
    pages = packed + tl.load(packed + 7)
    for run in range(tl.program_id(0), num_runs, tl.num_programs(0)):
        row = tl.load(runs + run * 4).to(tl.int64)
        start = tl.load(runs + run * 4 + 1)
        count = tl.load(runs + run * 4 + 2)
        first = tl.load(runs + run * 4 + 3)
        for at in range(0, count, BLOCK):
            i = at + tl.arange(0, BLOCK)
            values = tl.load(pages + first + i, mask=i < count)
            tl.store(block_table + row * stride_table + start + i, values, mask=i < count)


@triton.jit(do_not_specialize=["num_tokens_padded"])  # one compiled kernel for any number
def prepare_step_kernel(
    packed, block_table, last_token, ids, positions, slots, seq_lens, query_start_loc, batch_table,
    num_tokens_padded, stride_table, stride_batch, PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row of the batch; the last program sets what is past the step's tokens."""
    r = tl.program_id(0)
    num_rows = tl.load(packed)
    num_tokens = tl.load(packed + 1)
    last = r == tl.num_programs(0) - 1
    if last:
        tl.store(query_start_loc + tl.num_programs(0), num_tokens)
        for at in range(num_tokens, num_tokens_padded, BLOCK):
            i = at + tl.arange(0, BLOCK)
            tl.store(ids + i, tl.zeros_like(i).to(ids.dtype.element_ty), mask=i < num_tokens_padded)
            tl.store(positions + i, tl.zeros_like(i).to(positions.dtype.element_ty), mask=i < num_tokens_padded)
            tl.store(slots + i, tl.zeros_like(i).to(tl.int64) - 1, mask=i < num_tokens_padded)
    if r >= num_rows:
        tl.store(seq_lens + r, 0)
        tl.store(query_start_loc + r, num_tokens)
    else:
        row = tl.load(packed + HEADER + r).to(tl.int64)
        context = tl.load(packed + tl.load(packed + 3) + r)
        starts = packed + tl.load(packed + 4)
        start = tl.load(starts + r)
        query_len = tl.load(starts + r + 1) - start
        source = tl.load(packed + tl.load(packed + 5) + r)
        host_ids = packed + tl.load(packed + 5) + num_rows
        table = block_table + row * stride_table
        tl.store(seq_lens + r, context + query_len)
        tl.store(query_start_loc + r, start)
        sampled = tl.load(last_token + row)
        for at in range(0, query_len, BLOCK):
            i = at + tl.arange(0, BLOCK)
            mask = i < query_len
            known = tl.load(host_ids + source + i, mask=mask & (source >= 0), other=0)
            token = tl.where(source >= 0, known, sampled)
            position = context + i
            page = tl.load(table + position // PAGE, mask=mask, other=0).to(tl.int64)
            tl.store(ids + start + i, token.to(ids.dtype.element_ty), mask=mask)
            tl.store(positions + start + i, position.to(positions.dtype.element_ty), mask=mask)
            tl.store(slots + start + i, page * PAGE + position % PAGE, mask=mask)
        num_blocks = (context + query_len + PAGE - 1) // PAGE
        for at in range(0, num_blocks, BLOCK):
            i = at + tl.arange(0, BLOCK)
            pages = tl.load(table + i, mask=i < num_blocks)
            tl.store(batch_table + r.to(tl.int64) * stride_batch + i, pages, mask=i < num_blocks)


def write_blocks(packed: torch.Tensor, block_table: torch.Tensor) -> None:
    """Apply a packed step's new pages to the rows' tables, int32 [max_num_seqs, max_blocks]."""
    write_blocks_kernel[(64,)](packed, block_table, block_table.stride(0), BLOCK=128, num_warps=4)


def prepare_step(
    packed: torch.Tensor,
    block_table: torch.Tensor,
    last_token: torch.Tensor,
    *,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    batch_block_table: torch.Tensor,
    page_size: int,
) -> None:
    """Fill a step's inputs; launches one kernel and waits for nothing. Call `write_blocks` before it.

    Args:
        packed: int32, as `pack_step` wrote it.
        block_table, last_token: the rows' tables, int32 [max_num_seqs, max_blocks] and [max_num_seqs].
        token_ids, positions: integers [T'], T' at least the step's tokens. Those past them become 0.
        slot_mapping: int64 [T']; -1 past the step's tokens.
        seq_lens, query_start_loc: int32 [R'], [R' + 1], R' at least the step's rows.
        batch_block_table: int32 [R', max_blocks]; only entries of pages in use are written.
    """
    prepare_step_kernel[(seq_lens.shape[0],)](
        packed, block_table, last_token, token_ids, positions, slot_mapping, seq_lens, query_start_loc,
        batch_block_table, token_ids.shape[0], block_table.stride(0), batch_block_table.stride(0),
        PAGE=page_size, BLOCK=256, num_warps=4,
    )  # fmt: skip
