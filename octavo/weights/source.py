"""What a model asks of a checkpoint: tensors by their Hugging Face names."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from octavo.errors import ModelFileError


class FourBit(NamedTuple):
    """A matrix [N, K] with w[n, k] = step[n, k // 32] q[n, k] + low[n, k // 32].

    Attributes:
        q: uint8 [N, K], 0 to 15.
        step, low: float16 [N, K / 32].
    """

    q: torch.Tensor
    step: torch.Tensor
    low: torch.Tensor


class E4M3(NamedTuple):
    """A matrix [N, K] with w[n, k] = values[n, k] scale[n].

    Attributes:
        values: float8_e4m3fn [N, K].
        scale: float32 [N].
    """

    values: torch.Tensor
    scale: torch.Tensor


class WeightSource(Protocol):
    """Tensors by name, read when they are asked for."""

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """The tensor, on the CPU, in its stored type (quantized ones as float32); it may be a view of the file.

        Raises:
            ModelFileError: it is missing, damaged, or not of the given shape.
        """
        ...

    def four_bit(self, name: str) -> FourBit | None:
        """A matrix that is stored in blocks of 32 weights of 4 bits, as it is; None for one that is not."""
        ...

    def e4m3(self, name: str) -> E4M3 | None:
        """A matrix that is stored as 8-bit floats with scales, as it is; None for one that is not."""
        ...

    def names(self) -> list[str]: ...

    def __contains__(self, name: str) -> bool: ...

    def close(self) -> None: ...


def check_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...] | None) -> None:
    """Raises ModelFileError if a tensor is not of the shape that config.json implies."""
    if wanted is not None and tuple(found) != tuple(wanted):
        raise ModelFileError(
            f"The tensor {name!r} has shape {list(found)}, but the model's config needs {list(wanted)}.",
            fix="The config and the weights do not belong together: download the model again.",
        )


def missing_tensor(name: str, where: str) -> ModelFileError:
    """The error for a tensor that the file or folder `where` lacks."""
    return ModelFileError(
        f"{where} has no tensor {name!r}.", fix="The file is incomplete or of another architecture: download it again."
    )
