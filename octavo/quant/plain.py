"""Weights as they are, in the compute type."""

from __future__ import annotations

from typing import NamedTuple

import torch

from octavo.kernels import native
from octavo.kernels.batch_invariant import invariant_linear
from octavo.kernels.linear import adds_for_free, linear, linear_onto
from octavo.quant import Form, LinearScheme


class PlainParams(NamedTuple):
    """weight: [N, K]; bias: [N] or None; both in the compute type."""

    weight: torch.Tensor
    bias: torch.Tensor | None


class Plain:
    """A plain product.

    Args:
        invariant: one that is the same, to the bit, in any batch.
    """

    form: Form = "plain"

    def __init__(self, *, invariant: bool = False):
        self._linear = invariant_linear if invariant else linear

    def make(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, device: torch.device, dtype: torch.dtype
    ) -> PlainParams:
        return PlainParams(weight.to(device, dtype), None if bias is None else bias.to(device, dtype))

    def apply(self, x: torch.Tensor, params: PlainParams) -> torch.Tensor:
        return self._linear(x, params.weight, params.bias)

    def add(self, x: torch.Tensor, params: PlainParams, residual: torch.Tensor) -> bool:
        """residual += x Wᵀ + b where that is the cheaper way; False, and nothing is done, where it is not."""
        if self._linear is not linear or params.bias is not None or not adds_for_free(x):
            return False
        linear_onto(x, params.weight, residual)
        return True

    def rows(self, ids: torch.Tensor, params: PlainParams) -> torch.Tensor:
        if native.usable(params.weight) and ids.is_contiguous():
            return native.float_rows(ids, params.weight)
        return torch.nn.functional.embedding(ids, params.weight)

    def plain(self) -> LinearScheme:
        return self
