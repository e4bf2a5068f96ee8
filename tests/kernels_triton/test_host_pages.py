"""Memory for swapped pages comes in blocks beside the steps, and copies find their slots in any of them."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from octavo.kernels.triton.swap_pages import PageSwapper
from octavo.runner import swap
from octavo.runner.swap import HostPages


@pytest.fixture
def pinned(monkeypatch) -> list[int]:
    """Where there is no GPU, all memory is as good as pinned."""
    addresses: list[int] = []
    if not torch.cuda.is_available():
        monkeypatch.setattr(swap, "_pin", lambda address, size, device: addresses.append(address))
        monkeypatch.setattr(swap, "_unpin", addresses.remove)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    return addresses


def wait_for(host: HostPages, count: int) -> None:
    end = time.monotonic() + 10
    while host.num_ready < count and time.monotonic() < end:
        time.sleep(0.01)
    assert host.num_ready == count


def test_copies_reach_every_block(pinned, monkeypatch, device):
    caches = [torch.randn(9, 2, 4, 16, generator=torch.Generator().manual_seed(i)).to(device) for i in range(4)]
    expected = [cache.clone() for cache in caches]
    swapper = PageSwapper(caches)
    monkeypatch.setattr(swap, "_BLOCK_BYTES", 3 * swapper.slot_bytes)
    host = HostPages(7, swapper, device)
    host.compile()
    assert host.num_ready == 0 and all(map(torch.equal, caches, expected))
    host.start()
    wait_for(host, 7)
    out = np.array([(page, 6 - page) for page in range(7)], np.int32)
    host.copy(out, np.array([(8, 6), (0, 2)], np.int32))  # page 0 is given to another at once
    host.copy(np.empty((0, 2), np.int32), np.array([(7, 0)], np.int32))
    for cache, before in zip(caches, expected, strict=True):
        assert torch.equal(cache[[8, 0, 7]], before[[0, 4, 6]])
        assert torch.equal(cache[1:7], before[1:7])
    if device.type == "cuda":
        torch.cuda.synchronize()
    host.close()
    assert host.num_ready == 0 and not pinned


def test_what_cannot_be_had_is_done_without(pinned, monkeypatch, device, caplog):
    swapper = PageSwapper([torch.zeros(2, 2, 4, 16, device=device)])
    monkeypatch.setattr(swap, "_BLOCK_BYTES", 2 * swapper.slot_bytes)
    host, pin, calls = HostPages(9, swapper, device), swap._pin, []

    def pin_twice(address: int, size: int, on: torch.device) -> None:
        calls.append(address)
        if len(calls) > 2:
            raise OSError("there is no more")
        pin(address, size, on)

    monkeypatch.setattr(swap, "_pin", pin_twice)
    host.start()
    host._thread.join(10)
    assert host.num_ready == 4 and "4 of 9 pages: there is no more" in caplog.text
    host.close()


def test_without_swap_space_there_is_no_thread(device):
    host = HostPages(0, PageSwapper([torch.zeros(2, 2, 4, 16, device=device)]), device)
    host.start()
    assert host._thread is None and host.num_ready == 0
    host.close()
