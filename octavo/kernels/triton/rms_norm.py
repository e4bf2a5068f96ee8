# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Root mean square normalization (Zhang and Sennrich 2019, arXiv 1910.07467) of rows, with the addition before it.

y = x / sqrt(mean(x^2) + eps) * weight, computed in float32 and rounded once. With fp8 output the row is also scaled
so that its largest element becomes 448, e4m3's largest.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.launch import pdl_options, row_warps
from octavo.kernels.triton.quantize import quantize_row


@triton.jit
def rms_norm_kernel(
    x, residual, weight, out, scales, size, eps, stride_x,
    ADD: tl.constexpr, FP8: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row. With ADD, `residual` becomes x + residual (rounded to its type) and that is normalized."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < size
    gain = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
    values = tl.load(x + row * stride_x + columns, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        here = residual + row * size + columns
        total = (values + tl.load(here, mask=mask, other=0.0).to(tl.float32)).to(residual.dtype.element_ty)
        tl.store(here, total, mask=mask)
        values = total.to(tl.float32)
    mean_square = tl.sum(values * values, 0) / size
    normal = values * tl.rsqrt(mean_square + eps) * gain
    if FP8:
        normal, scale = quantize_row(normal)
        tl.store(scales + row, scale)
    tl.store(out + row * size + columns, normal.to(out.dtype.element_ty), mask=mask)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, *, pdl: bool = False) -> torch.Tensor:
    """x [T, H] (rows may be strided), weight [H] → [T, H] of x's type."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, None, weight, out, None, eps, pdl)
    return out


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, *, pdl: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual [T, H] → (norm(x + residual), x + residual). The sum overwrites `residual`, which is returned."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, residual, weight, out, None, eps, pdl)
    return out, residual


def rms_norm_fp8(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, *, pdl: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(float8_e4m3fn [T, H], float32 scales [T, 1]): norm = fp8 * scale. A `residual` is added to as above."""
    out = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(x.shape[0], 1, dtype=torch.float32, device=x.device)
    _launch(x, residual, weight, out, scales, eps, pdl)
    return out, scales


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    out: torch.Tensor,
    scales: torch.Tensor | None,
    eps: float,
    pdl: bool,
) -> None:
    tokens, size = x.shape
    if tokens == 0:
        return
    block = triton.next_power_of_2(size)
    rms_norm_kernel[(tokens,)](
        x, residual, weight, out, scales, size, eps, x.stride(0),
        ADD=residual is not None, FP8=scales is not None, BLOCK=block, PDL=pdl,
        num_warps=row_warps(block), **pdl_options(pdl),
    )  # fmt: skip
