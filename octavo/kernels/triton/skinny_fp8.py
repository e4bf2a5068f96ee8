# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""`skinny_linear` for e4m3: both factors have a scale for each row, which the sums are multiplied by at the end.

A step of up to some 128 rows is bound by reading W, and W has half of bfloat16's bytes. W's rows are the rows of the
tensor cores' tiles and x's the columns, so that few rows of x waste nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.launch import pdl_options
from octavo.kernels.triton.skinny_linear import SplitSpace, Tuning

MAX_ROWS = 128


@triton.jit(do_not_specialize=["M"])  # one compiled kernel for any number
def skinny_fp8_kernel(
    x, w, x_scales, w_scales, bias, y, partial, arrivals, M, N, K, share,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr, EVEN: tl.constexpr,
    BIAS: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BN outputs of all rows, over columns [part * share, (part + 1) * share) of W."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    tile, part = tl.program_id(0), tl.program_id(1)
    n = tile * BN + tl.arange(0, BN)
    m = tl.arange(0, BM)
    k = tl.arange(0, BK)
    first = part * share
    w_scale = tl.load(w_scales + n, mask=n < N, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
    weights = w + n.to(tl.int64)[:, None] * K + k[None, :]
    inputs = x + m[None, :] * K + k[:, None]
    acc = tl.zeros([BN, BM], tl.float32)
    for at in tl.range(first, tl.minimum(first + share, K), BK, num_stages=STAGES):
        if EVEN:
            a = tl.load(weights + at, eviction_policy="evict_first")
            b = tl.load(inputs + at, mask=m[None, :] < M, other=0.0)
        else:
            inside = at + k < K
            a = tl.load(weights + at, mask=(n < N)[:, None] & inside[None, :], other=0.0)
            b = tl.load(inputs + at, mask=(m < M)[None, :] & inside[:, None], other=0.0)
        acc = tl.dot(a, b, acc)
    if SPLIT > 1:
        here = (tile * SPLIT * BN + tl.arange(0, BN))[:, None] * BM + m[None, :]
        tl.store(partial + here + part * (BN * BM), acc)
        tl.debug_barrier()
        arrived = tl.atomic_add(arrivals + tile, 1, sem="acq_rel", scope="gpu")
        if arrived != SPLIT - 1:
            return
        tl.store(arrivals + tile, 0)
        acc = tl.zeros([BN, BM], tl.float32)
        for i in tl.static_range(SPLIT):
            acc += tl.load(partial + here + i * (BN * BM), cache_modifier=".cg")
    acc *= w_scale[:, None] * tl.load(x_scales + m, mask=m < M, other=0.0)[None, :]
    if BIAS:
        acc += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
    out = y + m.to(tl.int64)[None, :] * N + n[:, None]
    tl.store(out, acc.to(y.dtype.element_ty), mask=(m < M)[None, :] & (n < N)[:, None])


def padded_rows(rows: int) -> int:
    """What a tile holds of x: 16, 32, 64 or 128 rows."""
    return max(16, 1 << (rows - 1).bit_length())


def skinny_fp8(
    x: torch.Tensor,
    x_scales: torch.Tensor,
    weight: torch.Tensor,
    w_scales: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    dtype: torch.dtype,
    tuning: Tuning,
    space: SplitSpace | None = None,
    pdl: bool = False,
) -> torch.Tensor:
    """x float8_e4m3fn [M, K] (contiguous, M at most 128), weight float8_e4m3fn [N, K], bias [N] → [M, N] of `dtype`.

    Args:
        x_scales, w_scales: float32 [M, 1] and [N]: value = stored * scale.
        tuning: `prefetch` is not looked at.
        space: needed where `tuning.split` is above 1.

    Raises:
        ValueError: there are more rows, or no space for the split.
    """
    rows, columns = x.shape
    outputs = weight.shape[0]
    tiles = triton.cdiv(outputs, tuning.block_n)
    if rows > MAX_ROWS:
        raise ValueError(f"{rows} rows, at most {MAX_ROWS}")
    if tuning.split > 1 and (space is None or not fits(space, rows, outputs, tuning)):
        raise ValueError(f"a split in {tuning.split} of {outputs} outputs needs more space")
    y = torch.empty(rows, outputs, dtype=dtype, device=x.device)
    if rows == 0:
        return y
    blocks = triton.cdiv(columns, tuning.block_k)
    share = triton.cdiv(blocks, tuning.split) * tuning.block_k
    even = outputs % tuning.block_n == 0 and columns % tuning.block_k == 0
    skinny_fp8_kernel[(tiles, tuning.split)](
        x, weight, x_scales, w_scales, bias, y,
        None if space is None else space.partial, None if space is None else space.arrivals,
        rows, outputs, columns, share,
        BM=padded_rows(rows), BN=tuning.block_n, BK=tuning.block_k, SPLIT=tuning.split, EVEN=even,
        BIAS=bias is not None, STAGES=tuning.stages, PDL=pdl, num_warps=tuning.warps, **pdl_options(pdl),
    )  # fmt: skip
    return y


def fits(space: SplitSpace, rows: int, outputs: int, tuning: Tuning) -> bool:
    """Whether a launch's partial sums fit."""
    tiles = -(-outputs // tuning.block_n)
    needed = tiles * tuning.split * tuning.block_n * padded_rows(rows)
    return needed <= space.partial.numel() and tiles <= space.arrivals.numel()
