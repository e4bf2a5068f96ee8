"""Weights of 8-bit floats (e4m3) with a scale for each output; activations of e4m3 with a scale for each token.

On a GPU the products are cuBLAS's, at twice bfloat16's rate and half its bytes; one or two rows stay in bfloat16, as
reading the weights is all their products take. On a CPU there is the reference, which
is exact and slow. The kernels before a product (norm, gate) hand their rows over in e4m3, so that only the attention's
output is quantized by a kernel of its own. Embeddings and the output head stay in the compute type.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from octavo.kernels.fp8 import E4M3_MAX, LEAST_SCALE, QuantizedRows, fp8_linear, quantize_rows
from octavo.kernels.linear import Unnormed, few_rows_product, takes_unnormed
from octavo.quant import E4M3Scheme, Form
from octavo.quant.plain import Plain
from octavo.weights.source import E4M3


class Fp8Params(NamedTuple):
    """weight: float8_e4m3fn [N, K]; scale: float32 [N]; bias: [N] or None; dtype: the compute type."""

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None
    dtype: torch.dtype


class Fp8(E4M3Scheme):
    """Dynamic quantization, of weights when they are loaded and of activations token by token.

    Args:
        per_tensor: one scale for a matrix (of each checkpoint matrix, where several are stacked) instead of one for
            each output, as the plainest fp8 checkpoints have it.
        invariant: products that are the same, to the bit, in any batch.
    """

    form: Form = "e4m3"

    def __init__(self, *, per_tensor: bool = False, invariant: bool = False):
        self._per_tensor, self._invariant = per_tensor, invariant

    def make(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, device: torch.device, dtype: torch.dtype
    ) -> Fp8Params:
        return self.make_from_e4m3(self.quantize(weight.to(device)), bias, device=device, dtype=dtype)

    def quantize(self, weight: torch.Tensor) -> E4M3:
        """Float [N, K] → e4m3 with scales."""
        if not self._per_tensor:
            rows = quantize_rows(weight)
            return E4M3(rows.values, rows.scales[:, 0])
        largest = weight.abs().amax().float()
        scale = torch.where(largest == 0, 1.0, (largest / E4M3_MAX).clamp_min(LEAST_SCALE))
        values = (weight.float() / scale).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
        return E4M3(values, scale.expand(len(weight)).contiguous())

    def make_from_e4m3(
        self, stored: E4M3, bias: torch.Tensor | None, *, device: torch.device, dtype: torch.dtype
    ) -> Fp8Params:
        """As `make`, from weights that are e4m3 already: they are kept as they are."""
        bias = None if bias is None else bias.to(device, dtype)
        scale = stored.scale.to(device, torch.float32).contiguous()
        return Fp8Params(stored.values.to(device).contiguous(), scale, bias, dtype)

    def takes_unnormed(self, x: torch.Tensor) -> bool:
        return not self._invariant and takes_unnormed(x)

    def apply(self, x: torch.Tensor | QuantizedRows | Unnormed, params: Fp8Params) -> torch.Tensor:
        weight, scale, bias, dtype = params
        if isinstance(x, Unnormed):
            return few_rows_product(x, weight, bias, scales=scale)
        rows = x if isinstance(x, QuantizedRows) else quantize_rows(x)
        if self._invariant and weight.is_cuda:
            from octavo.kernels.triton.invariant_linear import invariant_linear

            return invariant_linear(rows.values, weight, bias, x_scales=rows.scales, w_scales=scale, dtype=dtype)
        return fp8_linear(rows, weight, scale, bias, dtype)

    def add(self, x: torch.Tensor | QuantizedRows, params: Fp8Params, residual: torch.Tensor) -> bool:
        if isinstance(x, QuantizedRows) or not self.takes_unnormed(x) or not residual.is_contiguous():
            return False
        few_rows_product(x, params.weight, params.bias, scales=params.scale, onto=residual)
        return True

    def gated(self, x: torch.Tensor | QuantizedRows | Unnormed, params: Fp8Params) -> torch.Tensor | None:
        if not isinstance(x, Unnormed):
            return None
        return few_rows_product(x, params.weight, params.bias, scales=params.scale, gated=True)

    def rows(self, ids: torch.Tensor, params: Fp8Params) -> torch.Tensor:
        taken = params.weight.view(torch.uint8)[ids].view(torch.float8_e4m3fn).float()
        return (taken * params.scale[ids, None]).to(params.dtype)

    def plain(self) -> Plain:
        return Plain(invariant=self._invariant)
