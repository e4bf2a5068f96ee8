"""Linear layers whose storage (plain, quantized) is the scheme's business, not the model's."""

from __future__ import annotations

import torch

from octavo.kernels.fp8 import QuantizedRows
from octavo.kernels.linear import Unnormed
from octavo.kernels.silu_and_mul import silu_and_mul, silu_and_mul_e4m3
from octavo.layers.context import LayerContext
from octavo.quant import Form

Activation = torch.Tensor | QuantizedRows | Unnormed
"""Rows on their way from a norm or a gate into a `Linear`, which alone looks inside."""


class Linear:
    """y = x Wᵀ + b. Several checkpoint matrices that read the same input are stacked into one (q, k, v; gate, up).

    Args:
        ctx: the place that holds the parts.
        parts: child name → output size, in the order of the output's columns.
        in_features: input size.
        bias: whether the parts have biases.
        alternate: rows of the parts, all of one size, follow each other in turn instead of part by part.
    """

    def __init__(
        self,
        ctx: LayerContext,
        parts: dict[str, int],
        in_features: int,
        bias: bool = False,
        *,
        alternate: bool = False,
    ):
        self.out_features = sum(parts.values())
        self.in_features = in_features
        self.alternate = alternate
        self.scheme, self.params = ctx.matrix(parts, in_features, bias, alternate=alternate)

    @property
    def form(self) -> Form:
        """How the layer before may hand its rows over."""
        return self.scheme.form

    def takes_unnormed(self, x: torch.Tensor) -> bool:
        """Whether this layer computes the RMS norm before it itself, for these rows."""
        return self.scheme.takes_unnormed(x)

    def __call__(self, x: Activation) -> torch.Tensor:
        """x [T, in_features] → [T, out_features]."""
        return self.scheme.apply(x, self.params)

    def add(self, x: Activation, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the norm after this layer adds up: (x Wᵀ + b, residual), or (their sum in `residual`, None)."""
        if self.scheme.add(x, self.params, residual):
            return residual, None
        return self(x), residual

    def gated(self, x: Activation, form: Form) -> Activation:
        """silu(gate) * up, [T, out_features / 2], of a layer whose two parts are gate and up.

        Args:
            form: how the layer after it takes rows best.
        """
        gated = self.scheme.gated(x, self.params) if self.alternate else None
        if gated is not None:
            return gated
        both = self(x)
        if form == "e4m3":
            return silu_and_mul_e4m3(both, pairs=self.alternate)
        return silu_and_mul(both, pairs=self.alternate)
