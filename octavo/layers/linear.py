"""Linear layers whose storage (plain, quantized) is the scheme's business, not the model's."""

from __future__ import annotations

import torch

from octavo.layers.context import LayerContext


class Linear:
    """y = x Wᵀ + b. Several checkpoint matrices that read the same input are stacked into one (q, k, v; gate, up).

    Args:
        ctx: the place that holds the parts.
        parts: child name → output size, in the order of the output's columns.
        in_features: input size.
        bias: whether the parts have biases.
    """

    def __init__(self, ctx: LayerContext, parts: dict[str, int], in_features: int, bias: bool = False):
        matrices = [ctx.take(f"{name}.weight", (size, in_features)) for name, size in parts.items()]
        biases = [ctx.take(f"{name}.bias", (size,)) for name, size in parts.items()] if bias else []
        weight = matrices[0] if len(matrices) == 1 else torch.cat(matrices)
        self.out_features = sum(parts.values())
        self.in_features = in_features
        self.params = ctx.scheme.make(weight, torch.cat(biases) if biases else None, device=ctx.device, dtype=ctx.dtype)
        self.scheme = ctx.scheme

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, in_features] → [T, out_features]."""
        return self.scheme.apply(x, self.params)
