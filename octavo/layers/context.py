"""What a layer knows of its surroundings while it is built: where its weights come from and how to hold them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from octavo.quant import LinearParams, LinearScheme, Schemes
from octavo.weights.source import E4M3, FourBit, WeightSource, check_shape

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LayerContext:
    """A place in the checkpoint's tree of names, and the ways to store what is found there.

    Layers take their tensors while they are built, one at a time, so that loading needs no second copy of the model.

    Attributes:
        source: the checkpoint's tensors.
        device, dtype: where weights live, and the compute type.
        schemes: how matrices are held (plain, int8, ...).
        prefix: dotted name of this place, with its final dot.
        upload: copies a host's tensor into the device's; None is torch's own way.
        progress: called with the number of parameters after each tensor is taken.
    """

    source: WeightSource
    device: torch.device
    dtype: torch.dtype
    schemes: Schemes
    prefix: str = ""
    progress: Callable[[int], None] = lambda count: None
    upload: Callable[[torch.Tensor, torch.Tensor], None] | None = None

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

    def matrix(
        self,
        parts: dict[str, int],
        in_features: int,
        bias: bool = False,
        *,
        alternate: bool = False,
        head: bool = False,
    ) -> tuple[LinearScheme, LinearParams]:
        """A matrix of stacked parts, and the scheme that holds it.

        Args:
            parts: child name → number of rows, as {"q_proj": 576, "k_proj": 192}; "" is this place itself.
            bias: whether the parts have biases.
            alternate: rows of the parts, all of one size, follow each other in turn instead of part by part.
            head: whether it is the output head, or an embedding tied to it.
        """
        at = {f"{name}." if name else "": rows for name, rows in parts.items()}
        biases = [self.take(f"{name}bias", (rows,)) for name, rows in at.items()] if bias else []
        all_biases = torch.cat(biases) if biases else None
        turns = len(at) if alternate else 1
        if all_biases is not None:
            all_biases = in_turn(all_biases, turns)
        held = self._as_stored(at, in_features, all_biases, turns)
        if held is not None:
            return held
        matrices = [self.take(f"{name}weight", (rows, in_features)) for name, rows in at.items()]
        weight = in_turn(self.stacked(matrices).to(self.device), turns)
        scheme = (self.schemes.for_head if head else None) or self.schemes.usual
        return scheme, scheme.make(weight, all_biases, device=self.device, dtype=self.dtype)

    def stacked(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """One matrix of all parts' rows; on the device already where the way there is ours."""
        if self.upload is None or any(part.device != parts[0].device for part in parts) or parts[0].is_cuda:
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        rows = sum(len(part) for part in parts)
        whole = torch.empty(rows, parts[0].shape[1], dtype=parts[0].dtype, device=self.device)
        for part, place in zip(parts, whole.split([len(part) for part in parts]), strict=True):
            self.upload(part, place)
        return whole

    def _as_stored(
        self, at: dict[str, int], in_features: int, bias: torch.Tensor | None, turns: int
    ) -> tuple[LinearScheme, LinearParams] | None:
        """The matrix of parts that are quantized already, if a scheme takes all of them as they are."""
        four_bit, floats = self.schemes.for_four_bit, self.schemes.for_e4m3
        if four_bit is not None and turns == 1:
            blocks = self._all_of([self.source.four_bit(f"{self.prefix}{name}weight") for name in at])
            if blocks is not None:
                self._check_parts([part.q for part in blocks], at, in_features)
                return four_bit, four_bit.make_from_blocks(FourBit(*_stack(blocks)), bias)
        if floats is not None:
            stored = self._all_of([self.source.e4m3(f"{self.prefix}{name}weight") for name in at])
            if stored is not None:
                self._check_parts([part.values for part in stored], at, in_features)
                bytes_of = [(part.values.view(torch.uint8), part.scale) for part in stored]
                values, scale = (in_turn(column.to(self.device), turns) for column in _stack(bytes_of))
                whole = E4M3(values.view(torch.float8_e4m3fn), scale)
                return floats, floats.make_from_e4m3(whole, bias, device=self.device, dtype=self.dtype)
        return None

    @staticmethod
    def _all_of(parts: list[T | None]) -> list[T] | None:
        found = [part for part in parts if part is not None]
        return found if len(found) == len(parts) else None

    def _check_parts(self, parts: list[torch.Tensor], at: dict[str, int], in_features: int) -> None:
        for part, rows in zip(parts, at.values(), strict=True):
            check_shape(self.prefix, tuple(part.shape), (rows, in_features))
            self.progress(part.numel())


def in_turn(rows: torch.Tensor, turns: int) -> torch.Tensor:
    """Rows [turns * N, ...] of stacked parts → the first of each part, then the second of each, and so on."""
    return rows if turns == 1 else rows.unflatten(0, (turns, -1)).transpose(0, 1).flatten(0, 1)


def _stack(parts: Sequence[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    return parts[0] if len(parts) == 1 else tuple(torch.cat(columns) for columns in zip(*parts, strict=True))
