"""The gated feed-forward block (SwiGLU, Shazeer 2020, arXiv 2002.05202)."""

from __future__ import annotations

import torch

from octavo.kernels.linear import gates_alternate
from octavo.layers.context import LayerContext
from octavo.layers.linear import Activation, Linear
from octavo.model_config import ModelConfig


class GatedMLP:
    """down(silu(gate(x)) * up(x)), with gate and up in one matrix."""

    def __init__(self, config: ModelConfig, ctx: LayerContext):
        hidden, inner = config.hidden_size, config.intermediate_size
        parts, alternate = {"gate_proj": inner, "up_proj": inner}, gates_alternate(ctx.device)
        self.gate_up = Linear(ctx, parts, hidden, config.mlp_bias, alternate=alternate)
        self.down = Linear(ctx, {"down_proj": hidden}, inner, config.mlp_bias)

    def __call__(self, x: Activation, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x, residual [T, hidden] → as `Linear.add`."""
        return self.down.add(self.gate_up.gated(x, self.down.form), residual)
