"""What a layer knows of its surroundings while it is built: where its weights come from and how to hold them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch

from octavo.quant import LinearParams, LinearScheme, Schemes
from octavo.weights.source import FourBit, WeightSource, check_shape


@dataclass(frozen=True, slots=True)
class LayerContext:
    """A place in the checkpoint's tree of names, and the ways to store what is found there.

    Layers take their tensors while they are built, one at a time, so that loading needs no second copy of the model.

    Attributes:
        source: the checkpoint's tensors.
        device, dtype: where weights live, and the compute type.
        schemes: how matrices are held (plain, int8, ...).
        prefix: dotted name of this place, with its final dot.
        progress: called with the number of parameters after each tensor is taken.
    """

    source: WeightSource
    device: torch.device
    dtype: torch.dtype
    schemes: Schemes
    prefix: str = ""
    progress: Callable[[int], None] = lambda count: None

    def at(self, name: str) -> LayerContext:
        """The context of a child, as `ctx.at("layers").at("0")` or `ctx.at("layers.0")`."""
        return dataclasses.replace(self, prefix=f"{self.prefix}{name}.")

    def has(self, name: str) -> bool:
        return f"{self.prefix}{name}" in self.source

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor `prefix + name` in the checkpoint's own dtype, on the CPU.

        Raises:
            ModelFileError: it is missing, or its shape is another.
        """
        tensor = self.source.get(f"{self.prefix}{name}", shape)
        self.progress(tensor.numel())
        return tensor

    def parameter(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The same, in the compute type on the device."""
        return self.take(name, shape).to(device=self.device, dtype=self.dtype)

    def matrix(self, parts: dict[str, int], in_features: int, bias: bool = False) -> tuple[LinearScheme, LinearParams]:
        """A matrix of stacked parts, and the scheme that holds it.

        Args:
            parts: child name → number of rows, as {"q_proj": 576, "k_proj": 192}; "" is this place itself.
            bias: whether the parts have biases.
        """
        at = {f"{name}." if name else "": rows for name, rows in parts.items()}
        biases = [self.take(f"{name}bias", (rows,)) for name, rows in at.items()] if bias else []
        all_biases = torch.cat(biases) if biases else None
        scheme = self.schemes.for_four_bit
        if scheme is not None:
            stored = [self.source.four_bit(f"{self.prefix}{name}weight") for name in at]
            blocks = [part for part in stored if part is not None]
            if len(blocks) == len(stored):
                for part, rows in zip(blocks, at.values(), strict=True):
                    check_shape(self.prefix, tuple(part.q.shape), (rows, in_features))
                    self.progress(part.q.numel())
                return scheme, scheme.make_from_blocks(_stack(blocks), all_biases)
        matrices = [self.take(f"{name}weight", (rows, in_features)) for name, rows in at.items()]
        weight = matrices[0] if len(matrices) == 1 else torch.cat(matrices)
        usual = self.schemes.usual
        return usual, usual.make(weight, all_biases, device=self.device, dtype=self.dtype)


def _stack(parts: list[FourBit]) -> FourBit:
    return parts[0] if len(parts) == 1 else FourBit(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
