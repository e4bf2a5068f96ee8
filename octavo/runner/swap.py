"""Host memory that the GPU reads and writes itself, for the pages of preempted sequences.

It is asked for in blocks by a thread beside the steps: the kernel needs a second for some gigabytes. A block is faulted
in before it is pinned, so that the driver, which may hold up launches meanwhile, has as little as possible to do.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import threading

import numpy as np
import numpy.typing as npt
import torch

from octavo.kernels.triton.swap_pages import PageSwapper
from octavo.plan import Int32Array

logger = logging.getLogger(__name__)

_BLOCK_BYTES = 64 << 20
_PAUSE = 0.02  # seconds between blocks, for the steps
_PORTABLE_MAPPED = 3  # cudaHostRegisterPortable | cudaHostRegisterMapped


def _pin(address: int, size: int, device: torch.device) -> None:
    with torch.cuda.device(device):
        status = int(torch.cuda.cudart().cudaHostRegister(address, size, _PORTABLE_MAPPED))
    if status:
        raise OSError(f"{size} bytes of host memory cannot be pinned (CUDA error {status})")


def _unpin(address: int) -> None:
    torch.cuda.cudart().cudaHostUnregister(address)


class HostPages:
    """Slots of pinned memory, of one page each.

    Args:
        num_slots: how many there shall be, once `start` has got them all.
        swapper: copies pages of the caches.
    """

    def __init__(self, num_slots: int, swapper: PageSwapper, device: torch.device):
        self._num_slots, self._swapper, self._device = num_slots, swapper, device
        self._per_block = max(1, _BLOCK_BYTES // swapper.slot_bytes)
        self._blocks: list[mmap.mmap] = []
        self._bases: npt.NDArray[np.int64] = np.empty(0, np.int64)  # addresses of the blocks; replaced, never changed
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def num_ready(self) -> int:
        """Slots that may be used by now."""
        return min(self._num_slots, len(self._bases) * self._per_block)

    @property
    def started(self) -> bool:
        """Whether the memory is being got, or none is wanted."""
        return self._thread is not None or not self._num_slots

    def start(self) -> None:
        """Begin to get the memory, in a thread of its own."""
        if not self.started:
            self._thread = threading.Thread(target=self._get_blocks, name="octavo-swap", daemon=True)
            self._thread.start()

    def _get_blocks(self) -> None:
        size = self._per_block * self._swapper.slot_bytes
        while self.num_ready < self._num_slots and not self._stop.wait(_PAUSE):
            try:
                self._add_block(size)
            except (OSError, RuntimeError) as error:
                logger.warning("swap space stays at %d of %d pages: %s", self.num_ready, self._num_slots, error)
                return
        logger.info("swap space on the host: %d pages", self.num_ready)

    def _add_block(self, size: int) -> None:
        block = mmap.mmap(-1, size)
        with contextlib.suppress(AttributeError, OSError):  # not everywhere
            block.madvise(mmap.MADV_HUGEPAGE)
        view = np.frombuffer(block, np.uint8)
        view[:: mmap.PAGESIZE] = 0
        address = view.ctypes.data
        _pin(address, size, self._device)
        self._blocks.append(block)
        self._bases = np.append(self._bases, address)

    def copy(self, swap_out: Int32Array, swap_in: Int32Array) -> None:
        """Queue a plan's copies, first those to the host.

        Args:
            swap_out, swap_in: [N, 2] of (page, slot).
        """
        for pairs, to_host in ((swap_out, True), (swap_in, False)):
            if len(pairs):
                sent = torch.from_numpy(self._located(pairs)).pin_memory().to(self._device, non_blocking=True)
                self._swapper(sent, to_host=to_host)

    def _located(self, pairs: Int32Array) -> npt.NDArray[np.int64]:
        """int64 [N, 2] of (page, address)."""
        blocks, places = np.divmod(pairs[:, 1].astype(np.int64), self._per_block)
        return np.stack([pairs[:, 0], self._bases[blocks] + places * self._swapper.slot_bytes], 1)

    def compile(self) -> None:
        """Launch both copies once, to and from memory of the device, before there are slots; page 0 stays as it is."""
        scratch = torch.empty(self._swapper.slot_bytes, dtype=torch.uint8, device=self._device)
        pairs = torch.tensor([[0, scratch.data_ptr()]], device=self._device)
        self._swapper(pairs, to_host=True)
        self._swapper(pairs, to_host=False)

    def close(self) -> None:
        """Give the memory back. Nothing may be copying."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for address in self._bases.tolist():
            _unpin(address)
        self._bases, self._blocks = self._bases[:0], []
