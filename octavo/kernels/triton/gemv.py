# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""y = x Wᵀ + b for one or two rows of x, with what comes before and after it: an RMS norm, a gate, a sum.

Reading W is all the time this takes, and starting kernels of their own for a norm or a gate of one row costs more than
computing them: three launches less are 9 % of a layer (benchmarks/results/gpu-fused-h100.json). The norm needs no pass
of its own, as its factor is one number a row: the sum of squares is made while W is read, and applied to the sums.

W may be e4m3 with a scale for each row. It is widened as it is read; x stays as it is, so nothing has to be quantized.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.launch import pdl_options

MAX_ROWS = 2


@triton.jit
def load_row(x, at, columns, EVEN: tl.constexpr):
    """float32 [1, BK]: columns `at` of a row."""
    if EVEN:
        return tl.load(x + at).to(tl.float32)
    return tl.load(x + at, mask=at < columns, other=0.0).to(tl.float32)


@triton.jit
def store_sums(
    sums, squares, row, scale, bias, y, n, N, columns, eps,
    BN: tl.constexpr, NORM: tl.constexpr, GATE: tl.constexpr, ADD: tl.constexpr, SCALED: tl.constexpr,
    BIAS: tl.constexpr,
):  # fmt: skip
    """What follows the product of one row: scales, the norm's factor, bias; then the gate, or the sum with `y`."""
    out = tl.sum(sums, 1)
    if SCALED:
        out *= scale
    if NORM:
        out *= tl.rsqrt(tl.sum(tl.sum(squares, 1), 0) / columns + eps)
    if BIAS:
        out += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)
    if GATE:
        gate, up = tl.split(tl.reshape(out, [BN // 2, 2]))
        pair = tl.program_id(0) * (BN // 2) + tl.arange(0, BN // 2)
        gated = gate / (1 + tl.exp(-gate)) * up
        tl.store(y + row * (N // 2) + pair, gated.to(y.dtype.element_ty), mask=pair < N // 2)
    else:
        at = y + row * N + n
        if ADD:
            out += tl.load(at, mask=n < N, other=0.0).to(tl.float32)
        tl.store(at, out.to(y.dtype.element_ty), mask=n < N)


@triton.jit
def gemv_kernel(
    x, w, w_scales, bias, gain, y, N, columns, stride_x, eps,
    ROWS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr, NORM: tl.constexpr,
    GATE: tl.constexpr, ADD: tl.constexpr, SCALED: tl.constexpr, BIAS: tl.constexpr, STAGES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """BN outputs of one or two rows."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)[None, :]
    weights = w + n.to(tl.int64)[:, None] * columns + k
    scale = 1.0
    if SCALED:
        scale = tl.load(w_scales + n, mask=n < N, other=0.0)
    sums = tl.zeros([BN, BK], tl.float32)
    squares = tl.zeros([1, BK], tl.float32)
    if ROWS == 2:
        sums_1 = tl.zeros([BN, BK], tl.float32)
        squares_1 = tl.zeros([1, BK], tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
    for first in tl.range(0, columns, BK, num_stages=STAGES):
        at = first + k
        if EVEN:
            weight = tl.load(weights + first, eviction_policy="evict_first").to(tl.float32)
        else:
            mask = (n < N)[:, None] & (at < columns)
            weight = tl.load(weights + first, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
        values = load_row(x, at, columns, EVEN)
        if NORM:
            factors = load_row(gain, at, columns, EVEN)
            squares += values * values
            values *= factors
        sums += weight * values
        if ROWS == 2:
            values = load_row(x + stride_x, at, columns, EVEN)
            if NORM:
                squares_1 += values * values
                values *= factors
            sums_1 += weight * values
    store_sums(sums, squares, 0, scale, bias, y, n, N, columns, eps, BN, NORM, GATE, ADD, SCALED, BIAS)
    if ROWS == 2:
        store_sums(sums_1, squares_1, 1, scale, bias, y, n, N, columns, eps, BN, NORM, GATE, ADD, SCALED, BIAS)


@dataclass(frozen=True, slots=True)
class GemvTile:
    """What a program computes at a time."""

    outputs: int
    columns: int
    stages: int
    warps: int


def gemv_tile(rows: int, outputs: int, columns: int, fp8: bool) -> GemvTile:
    """The fastest on an H100 (benchmarks/results/gpu-fused-h100.json)."""
    if columns % 1024:
        return GemvTile(4, 512, 1, 2)
    if rows == 1 and outputs <= columns and not fp8:
        return GemvTile(8, 1024, 1, 4)
    return GemvTile(4, 1024, 3, 4)


def gemv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    scales: torch.Tensor | None = None,
    gain: torch.Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    onto: torch.Tensor | None = None,
    tile: GemvTile | None = None,
    pdl: bool = False,
) -> torch.Tensor:
    """x [M, K], M at most 2 (rows may be strided), weight [N, K], bias [N] → [M, N] of x's type.

    Args:
        scales: float32 [N], for a weight in float8_e4m3fn: value = stored * scale.
        gain, eps: multiply by the RMS norm of x with this weight [K], instead of x.
        gated: W's rows are gate, up, gate, up...; the result is silu(gate) * up, [M, N / 2].
        onto: [M, N], contiguous: the sum of it and the product overwrites it, and is returned.

    Raises:
        ValueError: there are more rows.
    """
    rows, columns = x.shape
    outputs = weight.shape[0]
    if rows > MAX_ROWS:
        raise ValueError(f"{rows} rows, at most {MAX_ROWS}")
    y = onto
    if y is None:
        y = torch.empty(rows, outputs // 2 if gated else outputs, dtype=x.dtype, device=x.device)
    if rows == 0:
        return y
    use = tile or gemv_tile(rows, outputs, columns, scales is not None)
    gemv_kernel[(triton.cdiv(outputs, use.outputs),)](
        x, weight, scales, bias, gain, y, outputs, columns, x.stride(0), eps,
        ROWS=rows, BN=use.outputs, BK=use.columns, EVEN=outputs % use.outputs == 0 and columns % use.columns == 0,
        NORM=gain is not None, GATE=gated, ADD=onto is not None, SCALED=scales is not None, BIAS=bias is not None,
        STAGES=use.stages, PDL=pdl, num_warps=use.warps, **pdl_options(pdl),
    )  # fmt: skip
    return y
