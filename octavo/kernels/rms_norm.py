"""Root mean square normalization, with the residual addition before it."""

from __future__ import annotations

import torch

from octavo.kernels import native
from octavo.kernels.fp8 import QuantizedRows, quantize_rows


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [T, H] / sqrt(mean(x²) + eps) * weight [H]; the mean in float32."""
    if x.is_cuda:
        from octavo.kernels.triton import rms_norm as triton
        from octavo.kernels.triton.launch import use_pdl

        return triton.rms_norm(x, weight, eps, pdl=use_pdl(x.device))
    if native.usable(x, weight):
        return native.rms_norm(x, None, weight, eps)
    values = x.float()
    normed = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(x + residual), x + residual); `residual` may be overwritten."""
    if x.is_cuda:
        from octavo.kernels.triton import rms_norm as triton
        from octavo.kernels.triton.launch import use_pdl

        return triton.add_rms_norm(x, residual, weight, eps, pdl=use_pdl(x.device))
    if native.usable(x, residual, weight):
        return native.rms_norm(x, residual, weight, eps), residual
    total = x + residual
    return rms_norm(total, weight, eps), total


def add_rms_norm_e4m3(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[QuantizedRows, torch.Tensor]:
    """(the norm as e4m3 rows, x + residual); `residual` may be overwritten, or None."""
    if x.is_cuda:
        from octavo.kernels.triton import rms_norm as triton
        from octavo.kernels.triton.launch import use_pdl

        rows = QuantizedRows(*triton.rms_norm_fp8(x, residual, weight, eps, pdl=use_pdl(x.device)))
        return rows, x if residual is None else residual
    total = x if residual is None else x + residual
    return quantize_rows(rms_norm(total, weight, eps)), total
