# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Dynamic per-row quantization to e4m3: of matrices, and for the kernels that end in it; and the scaling it needs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.launch import pdl_options, row_warps

E4M3_MAX = tl.constexpr(448.0)
LEAST_SCALE = tl.constexpr(1e-30)


@triton.jit
def row_scale(largest, broken):
    """What a row is divided by so that its greatest magnitude becomes 448; 1 for a row of zeros.

    A NaN or infinity (`broken` is not 0 where there is a NaN: maxima pass over it) makes the scale one too, and so
    every product of the row, but of no other row.
    """
    scale = tl.where(largest > 0, tl.maximum(largest / E4M3_MAX, LEAST_SCALE), 1.0)
    return tl.where(broken != 0, float("nan"), scale)


@triton.jit
def scale_to_e4m3(values, scale):
    """values / scale, within +-448; by one reciprocal, as a division takes ten instructions."""
    return tl.clamp(values * (1 / scale), -E4M3_MAX, E4M3_MAX)


@triton.jit
def quantize_row(values):
    """float32 [N] → (values / scale within +-448, scale)."""
    scale = row_scale(tl.max(tl.abs(values), 0), tl.max((values != values).to(tl.int32), 0))
    return scale_to_e4m3(values, scale), scale


@triton.jit
def quantize_rows_kernel(x, out, scales, size, stride_x, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """One row."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < size
    values = tl.load(x + row * stride_x + columns, mask=mask, other=0.0).to(tl.float32)
    values, scale = quantize_row(values)
    tl.store(scales + row, scale)
    tl.store(out + row * size + columns, values.to(out.dtype.element_ty), mask=mask)


def quantize_rows(x: torch.Tensor, *, pdl: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, K] (rows may be strided) → (float8_e4m3fn [T, K], float32 scales [T, 1]): x = e4m3 * scale."""
    rows, size = x.shape
    out = torch.empty(rows, size, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    if rows:
        block = triton.next_power_of_2(size)
        quantize_rows_kernel[(rows,)](
            x, out, scales, size, x.stride(0), BLOCK=block, PDL=pdl, num_warps=row_warps(block), **pdl_options(pdl)
        )
    return out, scales


@triton.jit
def scale_product_kernel(y, row_scales, column_scales, bias, size, BIAS: tl.constexpr, BLOCK: tl.constexpr):
    """One block of one row of y, in place."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < size
    values = tl.load(y + row * size + columns, mask=mask, other=0.0).to(tl.float32)
    values *= tl.load(row_scales + row) * tl.load(column_scales + columns, mask=mask, other=0.0)
    if BIAS:
        values += tl.load(bias + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + row * size + columns, values.to(y.dtype.element_ty), mask=mask)


def scale_product(
    y: torch.Tensor, row_scales: torch.Tensor, column_scales: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """y [T, N] *= row_scales [T, 1] * column_scales [N], += bias [N]; y is contiguous and returned."""
    rows, size = y.shape
    if rows:
        block = min(2048, triton.next_power_of_2(size))
        scale_product_kernel[(rows, triton.cdiv(size, block))](
            y, row_scales, column_scales, bias, size, BIAS=bias is not None, BLOCK=block, num_warps=4
        )
    return y
