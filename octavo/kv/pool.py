"""The page pool: reference counts, a least-recently-used order of free pages, and the index of what they hold.

A page is owned (its count is the number of block tables that hold it) or free. A free page whose content is indexed
stays findable until it is handed out: a cache hit takes it back from the middle of the order in O(1).
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt


class PagePool:
    """`num_pages` pages, all free at first.

    Attributes:
        num_evictions: indexed pages that were handed out for something else.
        counts: [num_pages], how many block tables hold each page; a view, not to be written.
    """

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self.num_evictions = 0
        self._counts = array("i", bytes(4 * num_pages))  # read one by one faster than numpy's own
        self.counts: npt.NDArray[np.int32] = np.frombuffer(self._counts, np.int32)
        self.counts.flags.writeable = False
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_pages))  # taken from the front
        self._digests: list[bytes | None] = [None] * num_pages
        self._index: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Own `count` free pages, the least recently used first; their old content is forgotten.

        Raises:
            ValueError: there are not that many; the caller must ask `num_free` first.
        """
        if count > len(self._free):
            raise ValueError(f"{count} pages were asked for, {len(self._free)} are free")
        pop, counts, digests = self._free.popitem, self._counts, self._digests
        pages = []
        for _ in range(count):
            page = pop(last=False)[0]
            digest = digests[page]
            if digest is not None:
                del self._index[digest]
                digests[page] = None
                self.num_evictions += 1
            counts[page] = 1
            pages.append(page)
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Own pages once more, be they owned already or free and found through the index."""
        counts = self._counts
        for page in pages:
            if counts[page] == 0:
                del self._free[page]
            counts[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Give up a sequence's pages, given in its order: its tail will be handed out before its head.

        Pages without indexed content are of no use to anyone and are handed out first.

        Raises:
            ValueError: a page is not owned.
        """
        counts, free = self._counts, self._free
        for page in reversed(pages):
            if counts[page] <= 0:
                raise ValueError(f"page {page} was released but is not owned")
            counts[page] -= 1
            if counts[page] == 0:
                free[page] = None
                if self._digests[page] is None:
                    free.move_to_end(page, last=False)

    def index(self, page: int, digest: bytes) -> None:
        """Make a full, owned page findable; if another page already holds the same, that one stays the indexed one."""
        if digest not in self._index and self._digests[page] is None:
            self._index[digest] = page
            self._digests[page] = digest

    def find(self, digests: Sequence[bytes]) -> list[int]:
        """Pages of the longest run of `digests`, from the first, that is indexed."""
        pages = []
        for digest in digests:
            page = self._index.get(digest)
            if page is None:
                break
            pages.append(page)
        return pages

    def num_free_among(self, pages: Iterable[int]) -> int:
        """How many of these pages are free (and would leave the free order if shared)."""
        return sum(self._counts[page] == 0 for page in pages)

    def forget(self, pages: Iterable[int]) -> None:
        """Take pages out of the index: what they hold is not to be relied on."""
        for page in pages:
            digest, self._digests[page] = self._digests[page], None
            if digest is not None:
                del self._index[digest]

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Verify every invariant against the block tables there are.

        Raises:
            RuntimeError: names the first page that breaks one.
        """
        held = Counter(page for table in tables for page in table)
        for page, count in enumerate(self._counts):
            if count != held[page]:
                raise RuntimeError(f"page {page} has the count {count} but is in {held[page]} block tables")
            if (count == 0) != (page in self._free):
                raise RuntimeError(f"page {page} with count {count} is {'not ' if count == 0 else ''}among the free")
            digest = self._digests[page]
            if digest is not None and self._index.get(digest) != page:
                raise RuntimeError(f"page {page} has a digest that the index does not lead to")
        if len(self._index) != sum(digest is not None for digest in self._digests):
            raise RuntimeError("the index has entries that no page answers for")
