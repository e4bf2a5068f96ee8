"""The gate of a SwiGLU block."""

from __future__ import annotations

import torch

from octavo.kernels import native
from octavo.kernels.fp8 import QuantizedRows, quantize_rows


def silu_and_mul(gate_up: torch.Tensor, *, pairs: bool = False) -> torch.Tensor:
    """[T, 2 I] → silu(gate) * up, [T, I]; gates come before ups, or, in `pairs`, each before its own."""
    if gate_up.is_cuda:
        from octavo.kernels.triton import silu_and_mul as triton
        from octavo.kernels.triton.launch import use_pdl

        return triton.silu_and_mul(gate_up, pairs=pairs, pdl=use_pdl(gate_up.device))
    if native.usable(gate_up) and not pairs:
        return native.silu_and_mul(gate_up)
    gate, up = gate_up.unflatten(-1, (-1, 2)).unbind(-1) if pairs else gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def silu_and_mul_e4m3(gate_up: torch.Tensor, *, pairs: bool = False) -> QuantizedRows:
    """The same as e4m3 rows [T, I]."""
    if gate_up.is_cuda:
        from octavo.kernels.triton import silu_and_mul as triton
        from octavo.kernels.triton.launch import use_pdl

        return QuantizedRows(*triton.silu_and_mul_fp8(gate_up, pairs=pairs, pdl=use_pdl(gate_up.device)))
    return quantize_rows(silu_and_mul(gate_up, pairs=pairs))
