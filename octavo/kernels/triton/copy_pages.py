# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Copy pages in all layers' caches at once: what a fork does to the page it will write to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl


@triton.jit
def copy_pages_kernel(addresses, pairs, words, stride_page, BLOCK: tl.constexpr):
    """One block of one page of one cache, as 32-bit words."""
    cache = tl.load(addresses + tl.program_id(1)).to(tl.pointer_type(tl.int32))
    source = tl.load(pairs + tl.program_id(0) * 2).to(tl.int64)
    destination = tl.load(pairs + tl.program_id(0) * 2 + 1).to(tl.int64)
    at = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(cache + source * stride_page + at, mask=at < words)
    tl.store(cache + destination * stride_page + at, values, mask=at < words)


class PageCopier:
    """Copies pages within each of a set of caches that have one shape and layout.

    Args:
        caches: [pages, ...], each page contiguous and a multiple of 4 bytes. Their memory must stay where it is.
    """

    def __init__(self, caches: Sequence[torch.Tensor]):
        first = caches[0]
        size = first.element_size()
        self._caches = tuple(caches)
        self._words = first[0].numel() * size // 4
        self._stride = first.stride(0) * size // 4
        addresses = [cache.data_ptr() for cache in caches]
        self._addresses = torch.tensor(addresses, dtype=torch.int64).to(first.device)

    def __call__(self, pairs: torch.Tensor) -> None:
        """int32 [C, 2] of (source, destination), on the device. No destination may be a source."""
        if len(pairs):
            block = 2048
            copy_pages_kernel[(len(pairs), len(self._caches), triton.cdiv(self._words, block))](
                self._addresses, pairs, self._words, self._stride, BLOCK=block, num_warps=4
            )
