"""The gated feed-forward block (SwiGLU, Shazeer 2020, arXiv 2002.05202)."""

from __future__ import annotations

import torch

from octavo.kernels.silu_and_mul import silu_and_mul, silu_and_mul_e4m3
from octavo.layers.context import LayerContext
from octavo.layers.linear import Activation, Linear
from octavo.model_config import ModelConfig
from octavo.quant import Form


class GatedMLP:
    """down(silu(gate(x)) * up(x)), with gate and up in one matrix."""

    def __init__(self, config: ModelConfig, ctx: LayerContext):
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_up = Linear(ctx, {"gate_proj": inner, "up_proj": inner}, hidden, config.mlp_bias)
        self.down = Linear(ctx, {"down_proj": hidden}, inner, config.mlp_bias)

    @property
    def form(self) -> Form:
        """How the norm before may hand its rows over."""
        return self.gate_up.form

    def __call__(self, x: Activation, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x, residual [T, hidden] → as `Linear.add`."""
        gate_up = self.gate_up(x)
        gated = silu_and_mul_e4m3(gate_up) if self.down.form == "e4m3" else silu_and_mul(gate_up)
        return self.down.add(gated, residual)
