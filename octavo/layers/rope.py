"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864) and the ways its frequencies are stretched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from octavo.model_config import RopeConfig


def cos_sin_table(rope: RopeConfig, head_dim: int, max_positions: int, trained_positions: int) -> torch.Tensor:
    """[max_positions, head_dim] float32: cosines of the head_dim/2 frequencies, then their sines.

    Args:
        trained_positions: config.json's max_position_embeddings, which "dynamic" measures its stretch by.
    """
    frequencies, amplitude = inverse_frequencies(rope, head_dim, max_positions, trained_positions)
    angles = torch.arange(max_positions, dtype=torch.float64)[:, None] * frequencies[None, :]
    return torch.cat([angles.cos(), angles.sin()], dim=1).mul_(amplitude).float()


def inverse_frequencies(
    rope: RopeConfig, head_dim: int, max_positions: int, trained_positions: int
) -> tuple[torch.Tensor, float]:
    """float64 [head_dim / 2] radians a position, and the factor on cosine and sine."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    base = rope.theta
    options, amplitude = rope.options, 1.0
    if rope.kind == "dynamic":
        factor = float(options.get("factor", 1.0))
        stretched = max(max_positions, trained_positions)
        base *= (factor * stretched / trained_positions - (factor - 1)) ** (head_dim / (head_dim - 2))
    frequencies = base**-exponents
    if rope.kind == "linear":
        frequencies = frequencies / float(options.get("factor", 1.0))
    elif rope.kind == "llama3":
        frequencies = _llama3(frequencies, options)
    elif rope.kind == "yarn":
        frequencies, amplitude = _yarn(frequencies, base, head_dim, trained_positions, options)
    return frequencies, amplitude


def _llama3(frequencies: torch.Tensor, options: Mapping[str, Any]) -> torch.Tensor:
    """Llama 3.1: long wavelengths are slowed by `factor`, short ones kept, those between blended."""
    factor = float(options.get("factor", 8.0))
    low, high = float(options.get("low_freq_factor", 1.0)), float(options.get("high_freq_factor", 4.0))
    trained = float(options.get("original_max_position_embeddings", 8192))
    turns = trained * frequencies / (2 * math.pi)  # how often a frequency turns within the trained length
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (blend + (1 - blend) / factor)


def _yarn(
    frequencies: torch.Tensor, base: float, head_dim: int, trained_positions: int, options: Mapping[str, Any]
) -> tuple[torch.Tensor, float]:
    """YaRN (Peng et al. 2023, arXiv 2309.00071), equations 15 to 17 and 22."""
    factor = float(options.get("factor", 1.0))
    trained = float(options.get("original_max_position_embeddings") or trained_positions)

    def dimension_of(turns: float) -> float:
        return head_dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(dimension_of(float(options.get("beta_fast") or 32.0))), 0)
    high = min(math.ceil(dimension_of(float(options.get("beta_slow") or 1.0))), head_dim - 1)
    ramp = (torch.arange(head_dim // 2, dtype=torch.float64) - low) / max(high - low, 0.001)
    stretched = ramp.clamp(0, 1)
    amplitude = options.get("attention_factor")
    if amplitude is None:
        amplitude = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    return frequencies * (1 - stretched + stretched / factor), float(amplitude)
