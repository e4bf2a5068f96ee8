"""Linear layers whose storage (plain, quantized) is the scheme's business, not the model's."""

from __future__ import annotations

from typing import cast

import torch

from octavo.kernels.fp8 import QuantizedRows
from octavo.layers.context import LayerContext
from octavo.quant import Form
from octavo.quant.plain import Plain

Activation = torch.Tensor | QuantizedRows
"""Rows on their way from a norm or a gate into a `Linear`, which alone looks inside."""


class Linear:
    """y = x Wᵀ + b. Several checkpoint matrices that read the same input are stacked into one (q, k, v; gate, up).

    Args:
        ctx: the place that holds the parts.
        parts: child name → output size, in the order of the output's columns.
        in_features: input size.
        bias: whether the parts have biases.
    """

    def __init__(self, ctx: LayerContext, parts: dict[str, int], in_features: int, bias: bool = False):
        self.out_features = sum(parts.values())
        self.in_features = in_features
        self.scheme, self.params = ctx.matrix(parts, in_features, bias)

    @property
    def form(self) -> Form:
        """How the layer before may hand its rows over."""
        return self.scheme.form

    def __call__(self, x: Activation) -> torch.Tensor:
        """x [T, in_features] → [T, out_features]."""
        return self.scheme.apply(x, self.params)

    def add(self, x: Activation, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the norm after this layer adds up: (x Wᵀ + b, residual), or (their sum in `residual`, None)."""
        if isinstance(self.scheme, Plain) and self.scheme.add(cast(torch.Tensor, x), self.params, residual):
            return residual, None
        return self(x), residual
