"""Launch sizes the elementwise kernels share."""

from __future__ import annotations

import torch


def row_warps(block: int) -> int:
    """Warps for one program that holds a row of `block` elements: 16 elements a thread, up to 16 warps."""
    return min(16, max(1, block // (32 * 16)))


def pdl_options(pdl: bool) -> dict[str, bool]:
    """Launch options of programmatic dependent launch; AMD's compiler does not know the option at all."""
    return {"launch_pdl": True} if pdl else {}


def pipeline_stages(hip: bool = torch.version.hip is not None) -> int:
    """Stages of the attention loops. The load of a page id takes one level of the pipeline and those of keys and
    values the next: 3 holds one tile of them in flight, 5 two, which CDNA's 64 KiB of shared memory cannot.
    """
    return 3 if hip else 5
