"""Weights of 8 bits with a scale for each output; activations of up to 12 bits with a scale for each token.

y[t, n] = s_x[t] s_w[n] sum_k q_x[t, k] q_w[n, k] + b[n], with q_w in [-127, 127], q_x in [-2047, 2047] (less where K is
above 8,260, for sums have 32 bits) and exact integer sums: a token's result does not depend on its batch. With 8 bits,
the few activations that are hundreds of times the others would leave those three or four bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from octavo.kernels import native
from octavo.quant import Form, LinearScheme
from octavo.quant.plain import Plain


class Int8Params(NamedTuple):
    """weight: int8 [N, K]; scale: float32 [N]; bias: float32 [N] or None."""

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None


def largest_activation(columns: int) -> int:
    """What the largest magnitude of a row of activations becomes: `columns` products of it and 127 fit 32 bits."""
    return min(2047, (2**31 - 1) // 127 // max(1, columns))


def quantize_rows(x: torch.Tensor, limit: int = 127) -> tuple[torch.Tensor, torch.Tensor]:
    """float [..., K] → whole floats [..., K] and float32 [..., 1]: x ≈ q * scale, the largest magnitude at `limit`."""
    scale = x.abs().amax(dim=-1, keepdim=True).float() / limit
    return (x * (1 / scale.clamp_min(1e-30))).round_(), scale


class Int8(LinearScheme):
    """Compiled kernels where there are any; the torch reference is as exact, but slow."""

    form: Form = "plain"

    def make(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, device: torch.device, dtype: torch.dtype
    ) -> Int8Params:
        if native.available():
            quantized, scales = native.quantize_weight(weight.float().contiguous())
            return Int8Params(quantized, scales, None if bias is None else bias.float().contiguous())
        q, scale = quantize_rows(weight.float())
        return Int8Params(
            q.to(device, torch.int8), scale[:, 0].to(device), None if bias is None else bias.to(device, torch.float32)
        )

    def apply(self, x: torch.Tensor, params: Int8Params) -> torch.Tensor:
        if native.available():
            return native.int8_linear(x, *params)
        q, scale = quantize_rows(x, largest_activation(x.shape[1]))
        # Sums of up to 2^6 products of 2^18 are exact in float32, and the blocks' sums in float64.
        total = torch.zeros((len(q), len(params.weight)), dtype=torch.float64)
        for at in range(0, q.shape[1], 64):
            block = slice(at, at + 64)
            total += q[:, block] @ params.weight[:, block].float().T
        y = total.float() * scale * params.scale
        return y if params.bias is None else y + params.bias

    def rows(self, ids: torch.Tensor, params: Int8Params) -> torch.Tensor:
        if native.available() and ids.is_contiguous():
            return native.int8_rows(ids, params.weight, params.scale)
        return params.weight[ids].float() * params.scale[ids, None]

    def plain(self) -> Plain:
        return Plain()
