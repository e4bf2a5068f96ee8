"""What a layer knows of its surroundings while it is built: where its weights come from and how to hold them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch

from octavo.quant import LinearScheme
from octavo.weights.source import WeightSource


@dataclass(frozen=True, slots=True)
class LayerContext:
    """A place in the checkpoint's tree of names, and the ways to store what is found there.

    Layers take their tensors while they are built, one at a time, so that loading needs no second copy of the model.

    Attributes:
        source: the checkpoint's tensors.
        device, dtype: where weights live, and the compute type.
        scheme: how linear weights are held (plain, int8, ...).
        prefix: dotted name of this place, with its final dot.
        progress: called with the number of parameters after each tensor is taken.
    """

    source: WeightSource
    device: torch.device
    dtype: torch.dtype
    scheme: LinearScheme
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
