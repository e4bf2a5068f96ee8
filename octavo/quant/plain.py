"""Weights as they are, in the compute type."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch

from octavo.kernels import native
from octavo.kernels.batch_invariant import invariant_linear
from octavo.kernels.linear import Unnormed, gated_linear, linear, linear_onto, takes_unnormed
from octavo.quant import Form, LinearScheme


class PlainParams(NamedTuple):
    """weight: [N, K]; bias: [N] or None; both in the compute type."""

    weight: torch.Tensor
    bias: torch.Tensor | None


class Plain(LinearScheme):
    """A plain product.

    Args:
        invariant: one that is the same, to the bit, in any batch.
    """

    form: Form = "plain"

    def __init__(self, *, invariant: bool = False):
        self._invariant = invariant

    def make(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, device: torch.device, dtype: torch.dtype
    ) -> PlainParams:
        return PlainParams(weight.to(device, dtype), None if bias is None else bias.to(device, dtype))

    def takes_unnormed(self, x: torch.Tensor) -> bool:
        return not self._invariant and takes_unnormed(x)

    def apply(self, x: torch.Tensor | Unnormed, params: PlainParams) -> torch.Tensor:
        if self._invariant:
            return invariant_linear(cast(torch.Tensor, x), params.weight, params.bias)
        return linear(x, params.weight, params.bias)

    def add(self, x: torch.Tensor, params: PlainParams, residual: torch.Tensor) -> bool:
        return not self._invariant and linear_onto(x, params.weight, params.bias, residual)

    def gated(self, x: torch.Tensor | Unnormed, params: PlainParams) -> torch.Tensor | None:
        return None if self._invariant else gated_linear(x, params.weight, params.bias)

    def rows(self, ids: torch.Tensor, params: PlainParams) -> torch.Tensor:
        if native.usable(params.weight) and ids.is_contiguous():
            return native.float_rows(ids, params.weight)
        return torch.nn.functional.embedding(ids, params.weight)

    def plain(self) -> LinearScheme:
        return self
