"""A forward pass as a recorded list of kernel calls: what CUDA graphs are to a GPU, for the compiled CPU kernels.

Recording runs the pass once. Its intermediate tensors come from an arena that takes each back when nobody holds it, so
the recorded addresses stay valid and are used again within the pass, as an eager pass would. Replaying is one call.
"""

from __future__ import annotations

import ctypes
import math
import struct
import weakref
from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NotRecordable(Exception):
    """The pass computes something outside the compiled kernels, which a replay would leave out."""


def aligned(nbytes: int) -> npt.NDArray[np.uint8]:
    """Uninitialised bytes that begin a cache line; not from torch, so also to be had while a pass is recorded."""
    block = np.empty(nbytes + 63, np.uint8)
    start = -block.ctypes.data % 64
    return block[start : start + nbytes]


class Arena:
    """Memory of recorded passes that never run at the same time: all may share one."""

    def __init__(self) -> None:
        self._free: list[tuple[int, int]] = []  # (size, index of the block), by size
        self._blocks: list[npt.NDArray[np.float32]] = []

    def empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        """An uninitialised float32 tensor; its memory comes back when the last view of it is gone."""
        count = math.prod(shape)
        at = bisect_left(self._free, (count, 0))
        if at < len(self._free):
            entry = self._free.pop(at)
        else:
            entry = max(count, 16), len(self._blocks)
            self._blocks.append(aligned(4 * entry[0]).view(np.float32))
        lease = self._blocks[entry[1]][:count].reshape(shape)
        weakref.finalize(lease, insort, self._free, entry)  # which the tensor's storage holds, and views hold that
        return torch.from_numpy(lease)

    def unheld(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same values of a tensor from `empty`, without keeping others from its memory once it has gone."""
        for block in self._blocks:
            if block.ctypes.data == tensor.data_ptr():
                return torch.from_numpy(block[: tensor.numel()].reshape(tensor.shape))
        raise ValueError("the tensor is not the arena's")


class Tape:
    """The kernel calls of one pass, in order."""

    def __init__(self, arena: Arena):
        self._arena = arena
        self._calls: list[tuple[int, bytes, int]] = []
        self._kept: list[Any] = []
        self._entries = b""

    def record(self, address: int, arguments: bytes, threads: int) -> None:
        self._calls.append((address, arguments, threads))

    def empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        return self._arena.empty(shape)

    def keep(self, memory: npt.NDArray[np.uint8]) -> None:
        """Hold memory that calls refer to for as long as the tape."""
        if not any(memory is other for other in self._kept):
            self._kept.append(memory)

    def freeze(self, play: Callable[[int, int, int], None], threads: int) -> Callable[[], None]:
        """Make the calls into one: the returned function runs them all."""
        arguments = [ctypes.create_string_buffer(block, len(block)) for _, block, _ in self._calls]
        entries = b"".join(
            struct.pack("3q", address, ctypes.addressof(buffer), count)
            for (address, _, count), buffer in zip(self._calls, arguments, strict=True)
        )
        table = ctypes.create_string_buffer(entries, len(entries))
        kept = (arguments, table, self._kept)
        start, count = ctypes.addressof(table), len(self._calls)

        def replay(kept: Any = kept) -> None:
            play(start, count, threads)

        return replay


_VIEWS = {
    "view",
    "_unsafe_view",
    "reshape",
    "slice",
    "select",
    "alias",
    "detach",
    "lift_fresh",
    "unbind",
    "split",
    "split_with_sizes",
}


class OnlyViews(TorchDispatchMode):
    """Raises NotRecordable when torch is asked to compute; views of a tensor compute nothing."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler, which takes seconds, to keep it away from here

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in _VIEWS:
            raise NotRecordable(f"torch.{name} is not a compiled kernel")
        return func(*args, **(kwargs or {}))
