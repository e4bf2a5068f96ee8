"""How linear weights are held: one scheme a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from octavo.errors import ConfigError
from octavo.weights.source import E4M3, FourBit

LinearParams = Any
"""What a scheme made of a weight; only that scheme looks inside."""


Form = Literal["plain", "e4m3"]
"""How a layer before a product may hand its rows over: as a tensor, or as `kernels.fp8.QuantizedRows` too."""


class LinearScheme(Protocol):
    """Makes weights into what `apply` multiplies by."""

    @property
    def form(self) -> Form:
        """What the layer before does best to hand over. Each scheme takes tensors."""
        ...

    def make(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, device: torch.device, dtype: torch.dtype
    ) -> LinearParams:
        """Take a weight [N, K] in any float type, and a bias [N]."""
        ...

    def apply(self, x: Any, params: LinearParams) -> torch.Tensor:
        """x [T, K], of `form` or a tensor → x Wᵀ + b, [T, N]."""
        ...

    def takes_unnormed(self, x: torch.Tensor) -> bool:
        """Whether, for these rows, the methods here take `kernels.linear.Unnormed` rows and compute the norm too."""
        return False

    def add(self, x: Any, params: LinearParams, residual: torch.Tensor) -> bool:
        """residual [T, N] += x Wᵀ + b where that is the cheaper way; False, and nothing is done, where it is not."""
        return False

    def gated(self, x: Any, params: LinearParams) -> torch.Tensor | None:
        """silu(gate) * up, [T, N / 2], of x and a W whose rows are gate, up, gate, up...; None where no kernel
        computes the product and the gate at once."""
        return None

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


class E4M3Scheme(LinearScheme, Protocol):
    """One that takes matrices of 8-bit floats as they are stored."""

    def make_from_e4m3(
        self, stored: E4M3, bias: torch.Tensor | None, *, device: torch.device, dtype: torch.dtype
    ) -> LinearParams:
        """As `make`."""
        ...


@dataclass(frozen=True, slots=True)
class Schemes:
    """How a model's matrices are held.

    Attributes:
        usual: for all matrices.
        for_four_bit: for those stored in 4-bit blocks, if that is another one; they are then not made larger.
        for_e4m3: for those stored as 8-bit floats, if they are to stay so.
        for_head: for the output head and an embedding tied to it, if that is another one.
    """

    usual: LinearScheme
    for_four_bit: BlockScheme | None = None
    for_e4m3: E4M3Scheme | None = None
    for_head: LinearScheme | None = None


def schemes(name: str, *, invariant: bool = False) -> Schemes:
    """What `--quantization` names; "gguf" keeps 4-bit blocks and makes int8 of everything else.

    "fp8_checkpoint" keeps what a checkpoint stores as 8-bit floats, and nothing else is made so.

    Args:
        invariant: results that are the same, to the bit, in any batch; int8 and int4 sums are so anyhow.

    Raises:
        ConfigError: there is none of that name.
    """
    from octavo.quant.fp8 import Fp8
    from octavo.quant.int4 import Int4
    from octavo.quant.int8 import Int8
    from octavo.quant.plain import Plain

    plain, fp8 = Plain(invariant=invariant), Fp8(invariant=invariant)
    choices = {
        "none": Schemes(plain),
        "fp8": Schemes(fp8, for_e4m3=fp8, for_head=plain),
        "fp8_per_tensor": Schemes(Fp8(per_tensor=True, invariant=invariant), for_e4m3=fp8, for_head=plain),
        "fp8_checkpoint": Schemes(plain, for_e4m3=fp8),
        "int8": Schemes(Int8()),
        "int4": Schemes(Int4(), Int4()),
        "gguf": Schemes(Int8(), Int4()),
    }
    if name not in choices:
        raise ConfigError(
            f"--quantization cannot be {name!r}.", fix=f"Choose one of: {', '.join(choices)}.", param="quantization"
        )
    return choices[name]
