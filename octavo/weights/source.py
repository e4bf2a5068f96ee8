"""What a model asks of a checkpoint: tensors by their Hugging Face names."""

from __future__ import annotations

from typing import Protocol

import torch

from octavo.errors import ModelFileError


class WeightSource(Protocol):
    """Tensors by name, read when they are asked for."""

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """The tensor, on the CPU, in its stored type (quantized ones as float32); it may be a view of the file.

        Raises:
            ModelFileError: it is missing, damaged, or not of the given shape.
        """
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
    """The error for a tensor that a model needs and `where` does not have."""
    """The error for a tensor that the file or folder `where` lacks."""
    return ModelFileError(
        f"{where} has no tensor {name!r}.", fix="The file is incomplete or of another architecture: download it again."
    )
