"""Random weights for a bare config.json: speed does not depend on their values."""

from __future__ import annotations

import hashlib

import torch

from octavo.errors import ModelFileError


class DummySource:
    """A WeightSource that draws N(0, 0.02), or ones for norms; a tensor depends on the seed and its name only.

    It has every name that is asked for but scales, so whether a model has biases is its config's to say.

    Args:
        device, dtype: where and as what they are drawn; other devices draw other numbers.
    """

    def __init__(self, seed: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32):
        self._seed, self._device, self._dtype = seed, device or torch.device("cpu"), dtype

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        if shape is None:
            raise ModelFileError(f"A dummy weight needs a shape to be made: {name!r}.")
        if "norm" in name:
            return torch.ones(shape, device=self._device, dtype=self._dtype)
        digest = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
        generator = torch.Generator(self._device).manual_seed(int.from_bytes(digest[:7], "little"))
        drawn = torch.empty(shape, device=self._device, dtype=self._dtype)
        return drawn.normal_(0.0, 0.02, generator=generator)

    def four_bit(self, name: str) -> None:
        """Nothing is stored so."""

    def e4m3(self, name: str) -> None:
        """Nothing is stored so."""

    def names(self) -> list[str]:
        return []

    def __contains__(self, name: str) -> bool:
        return not name.endswith("_scale")  # which checkpoints of 16-bit weights do not have

    def close(self) -> None:
        """Nothing is open."""
