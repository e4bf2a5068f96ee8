"""Launch sizes the elementwise kernels share."""

from __future__ import annotations

import functools

import torch


def row_warps(block: int) -> int:
    """Warps for one program that holds a row of `block` elements: 16 elements a thread, up to 16 warps."""
    return min(16, max(1, block // (32 * 16)))


def pdl_options(pdl: bool) -> dict[str, bool]:
    """Launch options of programmatic dependent launch; AMD's compiler does not know the option at all."""
    return {"launch_pdl": True} if pdl else {}


@functools.cache
def use_pdl(device: torch.device) -> bool:
    """Whether kernels should start before the one before them has ended: where the card can (sm_90 and newer)."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


def pipeline_stages(hip: bool = torch.version.hip is not None) -> int:
    """Stages of the attention loops. The load of a page id takes one level of the pipeline and those of keys and
    values the next: 3 holds one tile of them in flight, 5 two, which CDNA's 64 KiB of shared memory cannot.
    """
    return 3 if hip else 5
