"""Tensors of the host on their way to a GPU, through pinned buffers in turn.

A copy from pages that are not pinned is staged by the driver, one small piece after the other. Here all cores fill one
buffer while the one before is on its way.
"""

from __future__ import annotations

import itertools

import torch

CHUNK_BYTES = 32 << 20
SLOTS = 4


class Uploader:
    """Copies to one device, in order with what its current stream does.

    Args:
        chunk_bytes, slots: size and number of the buffers.
    """

    def __init__(self, device: torch.device, *, chunk_bytes: int = CHUNK_BYTES, slots: int = SLOTS):
        self._cuda, self._chunk = device.type == "cuda", chunk_bytes
        buffers = [torch.empty(chunk_bytes, dtype=torch.uint8, pin_memory=self._cuda) for _ in range(slots)]
        self._slots = itertools.cycle([(buffer, torch.cuda.Event() if self._cuda else None) for buffer in buffers])

    def __call__(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """target = source; both contiguous, of one type and size. Returns when the last piece is on its way."""
        if source.dtype != target.dtype or source.shape != target.shape:
            raise ValueError(f"{source.dtype} {source.shape} is not {target.dtype} {target.shape}")
        taken, given = (tensor.reshape(-1).view(torch.uint8) for tensor in (source, target))
        for start in range(0, len(taken), self._chunk):
            buffer, free = next(self._slots)
            part = taken[start : start + self._chunk]
            if free is not None:
                free.synchronize()
            buffer[: len(part)].copy_(part)
            given[start : start + len(part)].copy_(buffer[: len(part)], non_blocking=True)
            if free is not None:
                free.record()
