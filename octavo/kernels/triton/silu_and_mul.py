# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""SwiGLU's elementwise half (Shazeer 2020, arXiv 2002.05202): silu(gate) * up; gates before ups, or in pairs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.launch import pdl_options, row_warps
from octavo.kernels.triton.quantize import row_scale, scale_to_e4m3


@triton.jit
def gated(x, block, size, PAIRS: tl.constexpr, BLOCK: tl.constexpr):
    """silu(gate) * up, float32 [BLOCK], of one block of a row."""
    if PAIRS:
        both = block * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
        values = tl.load(x + both, mask=both < 2 * size, other=0.0).to(tl.float32)
        gate, up = tl.split(tl.reshape(values, [BLOCK, 2]))
    else:
        columns = block * BLOCK + tl.arange(0, BLOCK)
        gate = tl.load(x + columns, mask=columns < size, other=0.0).to(tl.float32)
        up = tl.load(x + size + columns, mask=columns < size, other=0.0).to(tl.float32)
    return gate / (1 + tl.exp(-gate)) * up


@triton.jit
def silu_and_mul_kernel(x, out, size, stride_x, PAIRS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """One block of one row."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    product = gated(x + row * stride_x, tl.program_id(1), size, PAIRS, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + row * size + columns, product.to(out.dtype.element_ty), mask=columns < size)


@triton.jit
def silu_and_mul_fp8_kernel(
    x, out, scales, size, stride_x, PAIRS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, PDL: tl.constexpr
):
    """One row, its BLOCKS blocks kept in registers until its scale is known.

    As one large block the compiler computes everything twice, in the layout of the loads and in that of the stores.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    products = ()
    largest = tl.zeros([BLOCK], tl.float32)
    broken = tl.zeros([BLOCK], tl.int32)
    for i in tl.static_range(BLOCKS):
        product = gated(x + row * stride_x, i, size, PAIRS, BLOCK)
        products = products + (product,)  # type: ignore[assignment]  # noqa: RUF005 - no stars in Triton
        largest = tl.maximum(largest, tl.abs(product))
        broken = broken | (product != product).to(tl.int32)
    scale = row_scale(tl.max(largest, 0), tl.max(broken, 0))
    tl.store(scales + row, scale)
    for i in tl.static_range(BLOCKS):
        columns = i * BLOCK + tl.arange(0, BLOCK)
        values = scale_to_e4m3(products[i], scale)
        tl.store(out + row * size + columns, values.to(out.dtype.element_ty), mask=columns < size)


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
            x, out, size, x.stride(0), PAIRS=pairs, BLOCK=block, PDL=pdl,
            num_warps=row_warps(2 * block), **pdl_options(pdl),
        )  # fmt: skip
    return out


def silu_and_mul_fp8(x: torch.Tensor, *, pairs: bool = False, pdl: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(float8_e4m3fn [T, I], float32 scales [T, 1]): the product = fp8 * scale."""
    tokens, size = x.shape[0], x.shape[1] // 2
    out = torch.empty(tokens, size, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(tokens, 1, dtype=torch.float32, device=x.device)
    if tokens:
        block = min(2048, triton.next_power_of_2(size))  # pairs are loaded 16 bytes a thread
        silu_and_mul_fp8_kernel[(tokens,)](
            x, out, scales, size, x.stride(0), PAIRS=pairs, BLOCK=block, BLOCKS=triton.cdiv(size, block), PDL=pdl,
            num_warps=max(1, block // 128), **pdl_options(pdl),
        )  # fmt: skip
    return out, scales
