"""e4m3 activations and products: torch's references, and what runs on a GPU.

Both factors have a scale for each row, so a product is s_x[t] s_w[n] sum_k x[t, k] w[n, k] + b[n] (Micikevicius et al.
2022, arXiv 2209.05433, for the format; scales by token and by channel as in LLM.int8, arXiv 2208.07339).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from octavo.kernels import tuned_fp8
from octavo.kernels.tuned_fp8 import LtAlgorithm, Stored, Way, multiply_by

if TYPE_CHECKING:
    from octavo.kernels.triton.skinny_linear import SplitSpace

E4M3_MAX = 448.0
LEAST_SCALE = 1e-30
FEW = 16


class QuantizedRows(NamedTuple):
    """Activations on their way into a product: value = values * scales.

    Attributes:
        values: float8_e4m3fn [T, K].
        scales: float32 [T, 1].
    """

    values: torch.Tensor
    scales: torch.Tensor


def quantize_rows(x: torch.Tensor) -> QuantizedRows:
    """Float [T, K] → its rows, each with its largest magnitude at 448; a row of zeros has the scale 1.

    A row with NaN or infinity has a scale like it, so that its products are NaN, and no other row's.
    """
    if x.is_cuda:
        from octavo.kernels.triton import quantize as triton
        from octavo.kernels.triton.launch import use_pdl

        return QuantizedRows(*triton.quantize_rows(x, pdl=use_pdl(x.device)))
    values = x.float()
    largest = values.abs().amax(dim=1, keepdim=True) if x.shape[1] else values.new_zeros(len(x), 1)
    scales = torch.where(largest == 0, 1.0, (largest / E4M3_MAX).clamp_min(LEAST_SCALE))
    return QuantizedRows((values / scales).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scales)


def fp8_linear(
    x: QuantizedRows,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    *,
    way: Way | None = None,
) -> torch.Tensor:
    """x [T, K] times weight [N, K] transposed, plus bias [N] → [T, N] of `dtype`.

    Args:
        weight, scale: float8_e4m3fn [N, K] and float32 [N].
        way: on a GPU, overrides what was chosen at the start.
    """
    if not weight.is_cuda:
        # Products of two e4m3 numbers are multiples of 2^-18 below 2^18: float64 adds 2^16 of them exactly.
        y = (x.values.double() @ weight.double().T).float() * x.scales * scale
        return (y if bias is None else y + bias.float()).to(dtype)
    rows, columns = x.values.shape
    if rows == 0:
        return torch.empty(0, len(weight), dtype=dtype, device=weight.device)
    if columns % 16 or len(weight) % 16:  # which cuBLAS does not take
        from octavo.kernels.triton.invariant_linear import invariant_linear

        return invariant_linear(x.values, weight, bias, x_scales=x.scales, w_scales=scale, dtype=dtype)
    use = way or tuned_fp8.choice(rows, Stored(weight, scale, dtype)) or usual_way(rows, len(weight), columns)
    if use == "row-wise":
        y = torch._scaled_mm(
            x.values, weight.t(), scale_a=x.scales, scale_b=scale[None], out_dtype=torch.bfloat16, use_fast_accum=True
        )
        return (y if bias is None else y + bias).to(dtype)
    if use == "tensor-wise":
        from octavo.kernels.triton.quantize import scale_product

        one = _one(weight.device)
        y = torch._scaled_mm(
            x.values, weight.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        return scale_product(y, x.scales, scale, bias).to(dtype)
    if isinstance(use, LtAlgorithm):
        y = multiply_by(use, x.values, x.scales, Stored(weight, scale, dtype))
        return (y if bias is None else y + bias).to(dtype)
    from octavo.kernels.triton.launch import use_pdl
    from octavo.kernels.triton.skinny_fp8 import skinny_fp8

    space = _split_space(weight.device) if use.split > 1 else None
    return skinny_fp8(
        x.values, x.scales, weight, scale, bias, dtype=dtype, tuning=use, space=space, pdl=use_pdl(weight.device)
    )


def usual_way(rows: int, outputs: int, columns: int) -> Way:
    """What is used where nothing was timed.

    row-wise: cuBLAS applies the scales. tensor-wise: it multiplies without, and a kernel of ours applies them. A
    `Tuning`: our own kernel for few rows.
    """
    return "row-wise" if rows > FEW else _few_rows_way(outputs, columns)


@functools.cache
def _few_rows_way(outputs: int, columns: int) -> Way:
    ours = [way for way in tuned_fp8.candidates(FEW, outputs, columns) if not isinstance(way, str)]
    return ours[0 if outputs >= 12288 else 1] if ours else "row-wise"


def tune_products(matrices: tuned_fp8.Matrices, sizes: Sequence[int], kept: Path | None = None) -> int:
    """Time the ways for what `tuned_fp8.fp8_matrices_seen` found; see `tuned_fp8.tune_fp8`."""

    def multiply(x: torch.Tensor, x_scales: torch.Tensor, stored: Stored, way: Way) -> torch.Tensor:
        return fp8_linear(QuantizedRows(x, x_scales), stored.weight, stored.scales, None, stored.dtype, way=way)

    return tuned_fp8.tune_fp8(matrices, sizes, multiply, kept)


@functools.cache
def _split_space(device: torch.device) -> SplitSpace:
    from octavo.kernels.triton.skinny_linear import SplitSpace

    return SplitSpace(device, 1 << 22)


@functools.cache
def _one(device: torch.device) -> torch.Tensor:
    return torch.ones((), dtype=torch.float32, device=device)
