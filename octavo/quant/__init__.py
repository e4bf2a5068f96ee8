"""How linear weights are held: one scheme a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from octavo.errors import ConfigError
from octavo.weights.source import FourBit

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


class BlockScheme(LinearScheme, Protocol):
    """One that takes matrices of 4-bit blocks as they are stored."""

    def make_from_blocks(self, blocks: FourBit, bias: torch.Tensor | None) -> LinearParams:
        """As `make`."""
        ...


@dataclass(frozen=True, slots=True)
class Schemes:
    """How a model's matrices are held.

    Attributes:
        usual: for all matrices.
        for_four_bit: for those stored in 4-bit blocks, if that is another one; they are then not made larger.
    """

    usual: LinearScheme
    for_four_bit: BlockScheme | None = None


def schemes(name: str) -> Schemes:
    """What `--quantization` names; "gguf" keeps 4-bit blocks and makes int8 of everything else.

    Raises:
        ConfigError: there is none of that name.
    """
    from octavo.quant.int4 import Int4
    from octavo.quant.int8 import Int8
    from octavo.quant.plain import Plain

    choices = {
        "none": Schemes(Plain()),
        "int8": Schemes(Int8()),
        "int4": Schemes(Int4(), Int4()),
        "gguf": Schemes(Int8(), Int4()),
    }
    if name not in choices:
        raise ConfigError(
            f"--quantization cannot be {name!r}.", fix=f"Choose one of: {', '.join(choices)}.", param="quantization"
        )
    return choices[name]
