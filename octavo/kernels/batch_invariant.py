"""Products and sums whose every row is the same, to the bit, in any batch (`--batch-invariant`)."""

from __future__ import annotations

import torch

_CPU_ROWS = 32


def invariant_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [T, K], weight [N, K], bias [N] → x Wᵀ + b, [T, N]."""
    if x.is_cuda:
        from octavo.kernels.triton import invariant_linear as triton

        return triton.invariant_linear(x, weight, bias)
    # BLAS picks another kernel for another number of rows; so it always gets the same number, each at its own place.
    out = torch.empty(len(x), len(weight), dtype=x.dtype)
    part = x.new_zeros(_CPU_ROWS, x.shape[1])
    for at in range(0, len(x), _CPU_ROWS):
        rows = min(_CPU_ROWS, len(x) - at)
        part[:rows] = x[at : at + rows]
        out[at : at + rows] = torch.nn.functional.linear(part, weight, bias)[:rows]
    return out


def row_logsumexp(logits: torch.Tensor) -> torch.Tensor:
    """[S, V] → float32 [S, 1]: log of the sum of exponentials of each row."""
    if logits.is_cuda:
        from octavo.kernels.triton.row_logsumexp import row_logsumexp as triton

        return triton(logits)
    return torch.stack([row.float().logsumexp(0, keepdim=True) for row in logits]) if len(logits) else logits[:, :1]
