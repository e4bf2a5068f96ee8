"""The page pool: counts, order of reuse, the index; and a random walk that must never break an invariant."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from octavo.kv import PagePool, page_digests, root_digest

PAGE = 4


def digests(tokens: list[int], salt: str = "", adapter: str = "", media: str = "") -> list[bytes]:
    return page_digests(root_digest(adapter, media, salt), np.array(tokens, np.int32), PAGE)


def test_a_freed_sequence_is_evicted_from_its_tail() -> None:
    pool = PagePool(3)
    pages = pool.allocate(3)
    for page, digest in zip(pages, digests(list(range(12))), strict=True):
        pool.index(page, digest)
    pool.release(pages)
    assert pool.find(digests(list(range(12)))) == pages
    assert pool.allocate(1) == [pages[2]]
    assert pool.num_evictions == 1
    assert pool.find(digests(list(range(12)))) == pages[:2]


def test_the_least_recently_freed_goes_first_and_useless_pages_before_all() -> None:
    pool = PagePool(4)
    first, second, plain = pool.allocate(1), pool.allocate(1), pool.allocate(1)
    pool.index(first[0], digests([1] * 4)[0])
    pool.index(second[0], digests([2] * 4)[0])
    pool.release(first)
    pool.release(second)
    pool.release(plain)
    assert pool.allocate(4)[0] == plain[0]
    pool = PagePool(2)
    first, second = pool.allocate(1), pool.allocate(1)
    pool.index(first[0], digests([1] * 4)[0])
    pool.index(second[0], digests([2] * 4)[0])
    pool.release(first)
    pool.release(second)
    pool.share(first)  # a hit in the middle of the order
    pool.release(first)
    assert pool.allocate(2) == [second[0], first[0]]


def test_shared_pages_stay_until_the_last_owner_leaves() -> None:
    pool = PagePool(2)
    page = pool.allocate(1)
    pool.share(page)
    pool.release(page)
    assert pool.num_free == 1 and pool.counts[page[0]] == 1
    pool.release(page)
    assert pool.num_free == 2
    with pytest.raises(ValueError, match="not owned"):
        pool.release(page)


def test_too_many_pages_are_refused() -> None:
    with pytest.raises(ValueError, match="3 pages were asked for, 2 are free"):
        PagePool(2).allocate(3)


def test_what_differs_never_shares() -> None:
    tokens = list(range(8))
    keys = [digests(tokens), digests(tokens, salt="a"), digests(tokens, adapter="a"), digests(tokens, media="a")]
    keys.append(digests([9, *tokens[1:]]))
    assert len({key for chain in keys for key in chain}) == 10
    assert root_digest("ab", "c", "") != root_digest("a", "bc", "") != root_digest("a", "b", "c")
    assert digests(tokens)[0] == digests(tokens[:4])[0]
    assert len(digests(tokens[:7])) == 1


def test_check_names_what_is_wrong() -> None:
    pool = PagePool(2)
    pages = pool.allocate(1)
    pool.check([pages])
    with pytest.raises(RuntimeError, match="has the count 1 but is in 0 block tables"):
        pool.check([])


class PoolMachine(RuleBasedStateMachine):
    """Sequences come with prompts that share beginnings, are forked and freed; contents are kept beside the pool."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(12)
        self.tables: list[list[int]] = []
        self.content: dict[int, bytes] = {}

    @rule(head=st.integers(0, 2), length=st.integers(1, 5))
    def admit(self, head: int, length: int) -> None:
        chain = digests(([head] * 4 + [head + 1] * 16)[: length * PAGE])
        hits = self.pool.find(chain)
        for page, digest in zip(hits, chain, strict=False):
            assert self.content[page] == digest, "the index leads to a page with other content"
        needed = length - len(hits)
        if needed > self.pool.num_free - self.pool.num_free_among(hits):
            return
        self.pool.share(hits)
        table = hits + self.pool.allocate(needed)
        for page, digest in zip(table, chain, strict=True):
            self.content[page] = digest
            self.pool.index(page, digest)
        self.tables.append(table)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent = data.draw(st.sampled_from(self.tables))
        if not self.pool.num_free:
            return
        self.pool.share(parent[:-1])
        own = self.pool.allocate(1)
        self.content[own[0]] = b""
        self.tables.append(parent[:-1] + own)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.pool.release(self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1))))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        self.pool.forget(table)
        assert not set(self.pool.find(digests([0] * 4))) & set(table)

    @invariant()
    def holds(self) -> None:
        self.pool.check(self.tables)

    def teardown(self) -> None:
        for table in self.tables:
            self.pool.release(table)
        self.pool.check([])
        assert self.pool.num_free == 12


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40)
