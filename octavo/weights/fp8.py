"""Checkpoints whose matrices are stored as 8-bit floats (e4m3) with scales by matrix or by output.

config.json's `quantization_config` says how: `fp8` (as AutoFP8 and vLLM write it) and `compressed-tensors` in its
`float-quantized` format. A matrix `a.weight` has its scale in `a.weight_scale`, or in `a.weight_scale_inv`, which in
spite of its name multiplies too. Scales for activations are left unread: Octavo takes each token's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from octavo.errors import ModelFileError
from octavo.weights.source import E4M3, FourBit, WeightSource, check_shape

_SCALES = ("_scale", "_scale_inv")


def stores_fp8(config: Mapping[str, Any]) -> bool:
    """Whether config.json says that matrices are e4m3 in a way that is read here.

    Raises:
        ModelFileError: they are quantized in another way, which the error names.
    """
    quantization = config.get("quantization_config")
    if quantization is None:
        return False
    if not isinstance(quantization, Mapping):
        raise _unsupported("an unnamed scheme")
    method = quantization.get("quant_method")
    if method == "fp8":
        if quantization.get("weight_block_size"):
            raise _unsupported(f"fp8 in blocks of {quantization['weight_block_size']!s:.40}")
        if str(quantization.get("fmt", "e4m3")) != "e4m3":
            raise _unsupported(f"fp8 of the kind {quantization['fmt']!s:.40}")
        return True
    if method == "compressed-tensors":
        groups = quantization.get("config_groups")
        weights = [
            group.get("weights") for group in groups.values() if isinstance(group, Mapping)
        ] if isinstance(groups, Mapping) else []  # fmt: skip
        if not weights or not all(_is_fp8(entry) for entry in weights):
            raise _unsupported(f"compressed-tensors in the format {quantization.get('format')!s:.40}")
        return True
    raise _unsupported(f"{method!s:.40}")


def _is_fp8(weights: Any) -> bool:
    """Whether compressed-tensors' description of weights is e4m3 with a scale a matrix or an output."""
    return (
        isinstance(weights, Mapping)
        and weights.get("type") == "float"
        and weights.get("num_bits") == 8
        and weights.get("strategy") in ("tensor", "channel")
    )


def _unsupported(scheme: str) -> ModelFileError:
    return ModelFileError(
        f"The checkpoint's weights are quantized as {scheme}, which is not served.",
        fix="Take the unquantized checkpoint, with --quantization fp8 on a GPU or int8 on a CPU, or a GGUF file.",
        code="unsupported_quantization",
    )


class Fp8Source:
    """A WeightSource over another one that has e4m3 matrices beside their scales."""

    def __init__(self, stored: WeightSource):
        self._stored = stored

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """As the protocol says; e4m3 comes out as float32, scaled."""
        found = self.e4m3(name)
        if found is None:
            return self._stored.get(name, shape)
        check_shape(name, tuple(found.values.shape), shape)
        return found.values.float() * found.scale[:, None]

    def four_bit(self, name: str) -> FourBit | None:
        return self._stored.four_bit(name)

    def e4m3(self, name: str) -> E4M3 | None:
        """As the protocol says.

        Raises:
            ModelFileError: the matrix has no scale, or one that does not fit it.
        """
        if not name.endswith(".weight") or name not in self._stored:
            return None
        values = self._stored.get(name)
        if values.dtype == torch.float8_e5m2:
            raise _unsupported("e5m2")
        if values.dtype != torch.float8_e4m3fn or values.ndim != 2:
            return None
        place = next((name + suffix for suffix in _SCALES if name + suffix in self._stored), None)
        if place is None:
            raise _damaged(name, "has no scale")
        scale = self._stored.get(place).float().flatten()
        if len(scale) not in (1, len(values)):
            raise _damaged(place, f"holds {len(scale)} scales for {len(values)} outputs")
        if not scale.isfinite().all() or (scale < 0).any():
            raise _damaged(place, "holds scales that are negative or not finite")
        return E4M3(values, scale.expand(len(values)).contiguous())

    def names(self) -> list[str]:
        return self._stored.names()

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def close(self) -> None:
        self._stored.close()


def _damaged(name: str, what: str) -> ModelFileError:
    return ModelFileError(
        f"The 8-bit tensor {name!r} {what}.", fix="The checkpoint is incomplete or of another kind: download it again."
    )
