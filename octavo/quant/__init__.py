"""How linear weights are held: one scheme a file."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from octavo.errors import ConfigError

LinearParams = Any
"""What a scheme made of a weight; only that scheme looks inside."""


class LinearScheme(Protocol):
    """Makes weights into what `apply` multiplies by."""

    def make(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, device: torch.device, dtype: torch.dtype
    ) -> LinearParams:
        """Take a weight [N, K] in any float type, and a bias [N]."""
        ...

    def apply(self, x: torch.Tensor, params: LinearParams) -> torch.Tensor:
        """x [T, K] → x Wᵀ + b, [T, N]."""
        ...

    def rows(self, ids: torch.Tensor, params: LinearParams) -> torch.Tensor:
        """Rows of W: int64 [T] → [T, K] in the compute type."""
        ...

    def plain(self) -> LinearScheme:
        """The unquantized scheme, for matrices that are only looked up."""
        ...


def linear_scheme(name: str) -> LinearScheme:
    """The scheme of that name.

    Raises:
        ConfigError: there is none.
    """
    from octavo.quant.int8 import Int8
    from octavo.quant.plain import Plain

    schemes: dict[str, type[Plain] | type[Int8]] = {"none": Plain, "int8": Int8}
    if name not in schemes:
        raise ConfigError(
            f"--quantization cannot be {name!r}.", fix=f"Choose one of: {', '.join(schemes)}.", param="quantization"
        )
    return schemes[name]()
