# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""SwiGLU's elementwise half (Shazeer 2020, arXiv 2002.05202): silu(gate) * up; gates before ups, or in pairs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.launch import pdl_options, row_warps
from octavo.kernels.triton.quantize import quantize_row


@triton.jit
def silu_and_mul_kernel(
    x, out, scales, size, stride_x,
    FP8: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One block of one row; the whole row with FP8."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < size
    if PAIRS:
        both = tl.program_id(1) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
        values = tl.load(x + row * stride_x + both, mask=both < 2 * size, other=0.0).to(tl.float32)
        gate, up = tl.split(tl.reshape(values, [BLOCK, 2]))
    else:
        gate = tl.load(x + row * stride_x + columns, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(x + row * stride_x + size + columns, mask=mask, other=0.0).to(tl.float32)
    product = gate / (1 + tl.exp(-gate)) * up
    if FP8:
        product, scale = quantize_row(product)
        tl.store(scales + row, scale)
    tl.store(out + row * size + columns, product.to(out.dtype.element_ty), mask=mask)


def silu_and_mul(x: torch.Tensor, *, pairs: bool = False, pdl: bool = False) -> torch.Tensor:
    """x [T, 2 I] (rows may be strided) → [T, I] of x's type: silu(x[:, :I]) * x[:, I:], rounded once.

    Args:
        pairs: gates are the even columns, ups the odd.
    """
    tokens, size = x.shape[0], x.shape[1] // 2
    out = torch.empty(tokens, size, dtype=x.dtype, device=x.device)
    if tokens:
        block = min(1024, triton.next_power_of_2(size))
        silu_and_mul_kernel[(tokens, triton.cdiv(size, block))](
            x, out, None, size, x.stride(0), FP8=False, PAIRS=pairs, BLOCK=block, PDL=pdl,
            num_warps=row_warps(2 * block), **pdl_options(pdl),
        )  # fmt: skip
    return out


def silu_and_mul_fp8(x: torch.Tensor, *, pairs: bool = False, pdl: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(float8_e4m3fn [T, I], float32 scales [T, 1]): the product = fp8 * scale."""
    tokens, size = x.shape[0], x.shape[1] // 2
    out = torch.empty(tokens, size, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(tokens, 1, dtype=torch.float32, device=x.device)
    if tokens:
        block = triton.next_power_of_2(size)
        # Pairs take more registers a value: with twice the threads, as many run side by side as without.
        silu_and_mul_kernel[(tokens, 1)](
            x, out, scales, size, x.stride(0), FP8=True, PAIRS=pairs, BLOCK=block, PDL=pdl,
            num_warps=row_warps(block) * (2 if pairs else 1), **pdl_options(pdl),
        )  # fmt: skip
    return out, scales
