"""x Wᵀ + b with plain weights: a kernel of our own for few rows, the fastest that cuBLAS has for more, else torch."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from octavo.kernels import tuned_linear

if TYPE_CHECKING:
    from octavo.kernels.triton.skinny_linear import SplitSpace, Tuning

FEW = 16
"""Most rows that `skinny_linear` is used for."""
MANY = 1024
"""Most rows whose products are tuned one by one."""


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [T, K], weight [N, K], bias [N] → [T, N]."""
    if x.is_cuda and x.dtype == torch.bfloat16:
        chosen = tuned_linear.choice(len(x), weight) if bias is None else None
        if chosen is not None:
            return tuned_linear.run(x, weight, chosen)
        tuning = few_rows_tuning(*weight.shape, x.device) if len(x) <= FEW else None
        if tuning is not None:
            from octavo.kernels.triton.launch import use_pdl
            from octavo.kernels.triton.skinny_linear import skinny_linear

            space = _split_space(x.device) if tuning.split > 1 else None
            return skinny_linear(x, weight, bias, tuning=tuning, space=space, pdl=use_pdl(x.device))
    return torch.nn.functional.linear(x, weight, bias)


def adds_for_free(x: torch.Tensor) -> bool:
    """Whether `linear_onto` saves time: for many rows the sum hides behind the product, and the norm after it reads one
    tensor less. Fewer rows have kernels of their own, which do not add."""
    return x.is_cuda and len(x) > MANY


def linear_onto(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor) -> None:
    """residual [T, N] += x Wᵀ, rounded once."""
    residual.addmm_(x, weight.t())


@functools.cache
def few_rows_tuning(outputs: int, columns: int, device: torch.device) -> Tuning | None:
    """How `skinny_linear` multiplies up to 16 rows by such a matrix on a Hopper card; None where cuBLAS does it.

    From `benchmarks/results/gpu-gemm-h100.json`.
    """
    from octavo.kernels.triton.launch import use_pdl
    from octavo.kernels.triton.skinny_linear import Tuning

    if not use_pdl(device) or outputs % 16 or columns % 256:
        return None
    if outputs % 64 == 0 and outputs >= 6144:
        return Tuning(block_n=64, block_k=128, split=1, stages=4, warps=4, prefetch=0)
    return Tuning(block_n=16, block_k=128, split=1, stages=8, warps=2, prefetch=0)


@functools.cache
def _split_space(device: torch.device) -> SplitSpace:
    from octavo.kernels.triton.skinny_linear import SplitSpace

    return SplitSpace(device)
