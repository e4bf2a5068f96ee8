"""x Wᵀ + b with plain weights, and what follows it: kernels of our own where they are faster, else cuBLAS's fastest.

A product may take the norm before it, the gate or the sum after it, into its own kernel; whether it does for so many
rows is decided here, and nowhere else.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import torch

from octavo.kernels import tuned_linear

if TYPE_CHECKING:
    from octavo.kernels.triton.skinny_linear import SplitSpace, Tuning

GEMV_ROWS = 2
"""Most rows that `gemv` is used for."""
FEW = 16
"""Most rows that `skinny_linear` is used for."""
MANY = 1024
"""Most rows whose products are tuned one by one."""


class Unnormed(NamedTuple):
    """Rows on their way into a product that computes their RMS norm itself.

    Attributes:
        values: [T, K].
        gain: [K], the norm's weight.
        eps: added to the mean square.
    """

    values: torch.Tensor
    gain: torch.Tensor
    eps: float


def gates_alternate(device: torch.device) -> bool:
    """Whether the rows of a gate and those of its up are to alternate in one matrix, which is what a kernel that does
    both products and the gate asks for."""
    return device.type == "cuda"


def takes_unnormed(x: torch.Tensor) -> bool:
    """Whether products of these rows, with weights in bfloat16 or e4m3, take the norm before them, and sum and gate
    after them: one or two rows on a Hopper card."""
    return 0 < len(x) <= GEMV_ROWS and _on_hopper(x)


def few_rows_product(
    x: torch.Tensor | Unnormed,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    scales: torch.Tensor | None = None,
    gated: bool = False,
    onto: torch.Tensor | None = None,
) -> torch.Tensor:
    """`kernels.triton.gemv`, for rows that `takes_unnormed` says yes to."""
    from octavo.kernels.triton.gemv import gemv

    values, gain, eps = x if isinstance(x, Unnormed) else (x, None, 0.0)
    return gemv(values, weight, bias, scales=scales, gain=gain, eps=eps, gated=gated, onto=onto, pdl=True)


def linear(x: torch.Tensor | Unnormed, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [T, K], weight [N, K], bias [N] → [T, N]."""
    if isinstance(x, Unnormed) or takes_unnormed(x):
        return few_rows_product(x, weight, bias)
    if x.is_cuda and x.dtype == torch.bfloat16:
        chosen = tuned_linear.choice(len(x), weight) if bias is None else None
        if chosen is not None:
            return tuned_linear.run(x, weight, chosen)
        tuning = few_rows_tuning(*weight.shape, x.device) if len(x) <= FEW else None
        if tuning is not None:
            return _skinny(x, weight, bias, tuning)
    return torch.nn.functional.linear(x, weight, bias)


def linear_onto(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor) -> bool:
    """residual [T, N] += x Wᵀ + b, rounded once, where that is the cheaper way; else False, and nothing is done.

    For many rows the sum hides behind the product, for few the kernels are our own. The norm after it reads one tensor
    less in either case.
    """
    if not (x.is_cuda and x.dtype == torch.bfloat16 and residual.is_contiguous()):
        return False
    tuned_linear.note(weight, "+")
    if takes_unnormed(x):
        few_rows_product(x, weight, bias, onto=residual)
        return True
    tuning = few_rows_tuning(*weight.shape, x.device) if len(x) <= FEW else None
    if tuning is not None:
        _skinny(x, weight, bias, tuning, onto=residual)
        return True
    if len(x) <= MANY or bias is not None:
        return False
    tuned_linear.run(x, weight, tuned_linear.choice(len(x), weight, "+"), onto=residual)
    return True


def gated_linear(
    x: torch.Tensor | Unnormed, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor | None:
    """silu(gate) * up, [T, I], of x [T, K] and weight [2 I, K] whose rows are gate, up, gate, up...; None where no
    kernel computes both at once."""
    if isinstance(x, Unnormed) or takes_unnormed(x):
        return few_rows_product(x, weight, bias, gated=True)
    if not _on_hopper(x):
        return None
    tuning = few_rows_tuning(*weight.shape, x.device) if len(x) <= FEW else None
    if tuning is not None:
        return _skinny(x, weight, bias, tuning, gated=True)
    if bias is not None or x.shape[1] % 8 or not x.is_contiguous():
        return None
    from octavo.kernels.triton.gated_linear import gated_linear as for_many
    from octavo.kernels.triton.warm_up import wants_every_variant

    if len(x) > MANY or wants_every_variant():
        gated = for_many(x, weight, pdl=True)
        if len(x) > MANY:
            return gated
    return tuned_linear.run_gated(x, weight, tuned_linear.choice(len(x), weight, "gate"))


def _on_hopper(x: torch.Tensor) -> bool:
    from octavo.kernels.triton.launch import use_pdl

    return x.is_cuda and x.dtype == torch.bfloat16 and use_pdl(x.device)


def _skinny(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    tuning: Tuning,
    *,
    gated: bool = False,
    onto: torch.Tensor | None = None,
) -> torch.Tensor:
    from octavo.kernels.triton.launch import use_pdl
    from octavo.kernels.triton.skinny_linear import skinny_linear

    space = _split_space(x.device) if tuning.split > 1 else None
    return skinny_linear(x, weight, bias, tuning=tuning, space=space, gated=gated, onto=onto, pdl=use_pdl(x.device))


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
