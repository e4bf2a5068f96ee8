"""The gate of a SwiGLU block."""

from __future__ import annotations

import torch

from octavo.kernels import native


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """[T, 2 I] (gate, then up) → silu(gate) * up, [T, I]."""
    if gate_up.is_cuda:
        from octavo.kernels.triton import silu_and_mul as triton
        from octavo.kernels.triton.launch import use_pdl

        return triton.silu_and_mul(gate_up, pdl=use_pdl(gate_up.device))
    if native.usable(gate_up):
        return native.silu_and_mul(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up
