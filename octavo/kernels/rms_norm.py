"""Root mean square normalization, with the residual addition before it."""

from __future__ import annotations

import torch

from octavo.kernels import native


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
