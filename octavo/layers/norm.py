"""Root mean square layer normalization (Zhang and Sennrich 2019, arXiv 1910.07467)."""

from __future__ import annotations

import torch

from octavo.kernels.linear import Unnormed
from octavo.kernels.rms_norm import add_rms_norm, add_rms_norm_e4m3, rms_norm
from octavo.layers.context import LayerContext
from octavo.layers.linear import Activation, Linear


class RMSNorm:
    """y = x / sqrt(mean(x^2) + eps) * weight, with the residual addition before it fused in."""

    def __init__(self, ctx: LayerContext, size: int, eps: float):
        self.weight = ctx.parameter("weight", (size,))
        self.eps = eps

    def into(self, layer: Linear, x: torch.Tensor, residual: torch.Tensor | None) -> tuple[Activation, torch.Tensor]:
        """As a call, in the form that suits the layer, which is all that reads the norm."""
        if residual is None and layer.takes_unnormed(x):
            return Unnormed(x, self.weight, self.eps), x
        if layer.form == "e4m3":
            return add_rms_norm_e4m3(x, residual, self.weight, self.eps)
        return self(x, residual)

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """x [T, H], residual [T, H] or None → (norm(x + residual), x + residual)."""
        if residual is None:
            return rms_norm(x, self.weight, self.eps), x
        return add_rms_norm(x, residual, self.weight, self.eps)
