# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Copy pages of all layers' caches to host memory that the device can address, and back: one launch for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl


@triton.jit
def swap_pages_kernel(addresses, pairs, words, stride_page, TO_HOST: tl.constexpr, BLOCK: tl.constexpr):
    """One block of one page of one cache, as 64-bit words."""
    cache_index = tl.program_id(1)
    cache = tl.load(addresses + cache_index).to(tl.pointer_type(tl.int64))
    page = tl.load(pairs + tl.program_id(0) * 2)
    slot = tl.load(pairs + tl.program_id(0) * 2 + 1).to(tl.pointer_type(tl.int64))
    at = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    on_device = cache + page * stride_page + at
    on_host = slot + cache_index.to(tl.int64) * words + at
    if TO_HOST:
        tl.store(on_host, tl.load(on_device, mask=at < words), mask=at < words)
    else:
        tl.store(on_device, tl.load(on_host, mask=at < words), mask=at < words)


class PageSwapper:
    """Copies pages of a set of caches that have one shape and layout to slots of host memory and back.

    Args:
        caches: [pages, ...], each page contiguous and a multiple of 8 bytes. Their memory must stay where it is.

    Attributes:
        slot_bytes: of one page in all caches, which lie one behind the other in a slot.
    """

    def __init__(self, caches: Sequence[torch.Tensor]):
        first = caches[0]
        size = first.element_size()
        self._caches = tuple(caches)
        self._words = first[0].numel() * size // 8
        self._stride = first.stride(0) * size // 8
        addresses = [cache.data_ptr() for cache in caches]
        self._addresses = torch.tensor(addresses, dtype=torch.int64).to(first.device)
        self.slot_bytes = 8 * self._words * len(caches)

    def __call__(self, pairs: torch.Tensor, *, to_host: bool) -> None:
        """Copy in one direction.

        Args:
            pairs: int64 [N, 2] of (page, address of a slot), on the device. No destination may come twice.
        """
        if len(pairs):
            block = 1024
            swap_pages_kernel[(len(pairs), len(self._caches), triton.cdiv(self._words, block))](
                self._addresses,
                pairs,
                self._words,
                self._stride,
                TO_HOST=to_host,
                BLOCK=block,
                num_warps=4,
            )
