"""The compiled CPU kernels, if they are there and wanted."""

from __future__ import annotations

import torch


def configure(*, enabled: bool, threads: int) -> None:
    """Switch the compiled kernels on or off, and say how many threads they may use."""


def available() -> bool:
    """Whether compiled kernels are used."""
    return False


def reason() -> str:
    """Why they are not."""
    return "not built"


def gumbel_argmax(logits: torch.Tensor, inv_temperature: float, seed: int, position: int) -> int:
    raise RuntimeError(reason())
