"""Groups of rows with the same first pages, against brute force, as rows come, grow, are rewritten and go."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from octavo.plan import StepPlan
from octavo.runner.prefix_groups import Grouping, PrefixGroups, SharingCost

PAGE = 4
FREE = SharingCost(token_bytes=1, member_bytes=0, group_bytes=0, step_bytes=0)  # any two rows' page is worth it


def plan(writes: dict[int, tuple[int, list[int]]], free: tuple[int, ...] = ()) -> StepPlan:
    """Writes are row → (first page's place, pages)."""
    none = np.empty(0, np.int32)
    return StepPlan(
        0, none, none, none, none.astype(bool), none.astype(bool), none,
        free_rows=np.array(free, np.int32),
        block_rows=np.array(list(writes), np.int32),
        block_starts=np.array([start for start, _ in writes.values()], np.int32),
        block_counts=np.array([len(pages) for _, pages in writes.values()], np.int32),
        block_pages=np.array([page for _, pages in writes.values() for page in pages], np.int32),
    )  # fmt: skip


def index(tables: dict[int, list[int]], cost: SharingCost = FREE, tile: int = PAGE) -> PrefixGroups:
    groups = PrefixGroups(16, 64, PAGE, tile, cost)
    groups.update(plan({row: (0, pages) for row, pages in tables.items()}))
    return groups


def group(groups: PrefixGroups, rows: list[int], context: int = 1000) -> Grouping | None:
    return groups.group(np.array(rows, np.int32), np.full(len(rows), context, np.int32))


def as_sets(found: Grouping | None, rows: list[int]) -> set[tuple[frozenset[int], int]]:
    """(rows, shared tokens) of each group."""
    if found is None:
        return set()
    ends = np.cumsum(found.counts)
    parts = np.split(found.members, ends[:-1])
    return {
        (frozenset(rows[i] for i in part), length) for part, length in zip(parts, found.lengths.tolist(), strict=True)
    }


def test_groups_by_first_pages():
    tables = {0: [7, 8, 20], 1: [7, 8, 21], 2: [5, 6, 22], 3: [5, 6, 23], 4: [5, 6], 5: [9, 8, 20]}
    rows = [5, 3, 0, 2, 1, 4]
    assert as_sets(group(index(tables), rows), rows) == {(frozenset({0, 1}), 8), (frozenset({2, 3, 4}), 8)}


def test_only_rows_of_the_step_count():
    groups = index({0: [7, 20], 1: [7, 21], 2: [7, 22]})
    assert as_sets(group(groups, [2, 0]), [2, 0]) == {(frozenset({0, 2}), 4)}
    assert group(groups, [2]) is None


@pytest.mark.parametrize(
    ("deep", "expected"),
    [
        # Ten shared pages for two of four rows, or one page for all four: 1 x 10 against 3 x 1.
        (10, {(frozenset({0, 1}), 40)}),
        (2, {(frozenset({0, 1, 2, 3}), 4)}),
    ],
)
def test_of_nested_groups_the_one_that_saves_more(deep, expected):
    inner = list(range(100, 99 + deep))
    tables = {0: [1, *inner, 50], 1: [1, *inner, 51], 2: [1, 52], 3: [1, 53]}
    assert as_sets(group(index(tables), [0, 1, 2, 3]), [0, 1, 2, 3]) == expected


def test_shared_lengths_are_whole_tiles_within_every_context():
    tables = {0: [1, 2, 3, 10], 1: [1, 2, 3, 11]}
    rows = [0, 1]
    assert as_sets(group(index(tables, tile=8), rows), rows) == {(frozenset(rows), 8)}
    contexts = np.array([13, 7], np.int32)
    found = index(tables).group(np.array(rows, np.int32), contexts)
    assert as_sets(found, rows) == {(frozenset(rows), 4)}


def test_the_cost_decides():
    """Two rows of 3 shared pages save 12 tokens of 100 bytes; members and groups cost, and so does the step."""
    tables = {0: [1, 2, 3, 10], 1: [1, 2, 3, 11]}
    for step_bytes, expected in ((1049, 1), (1050, None)):
        found = group(index(tables, SharingCost(100, member_bytes=50, group_bytes=50, step_bytes=step_bytes)), [0, 1])
        assert (found and found.saved_bytes) == expected


def test_nothing_is_computed_anew_while_rows_only_grow():
    groups = index({0: [7, 20], 1: [7, 21], 2: [30]})
    found = group(groups, [0, 1, 2])
    groups.update(plan({0: (2, [40]), 2: (1, [41, 42])}))
    assert group(groups, [0, 1, 2]) is found
    groups.update(plan({3: (0, [7, 43])}))
    assert as_sets(group(groups, [0, 1, 2, 3]), [0, 1, 2, 3]) == {(frozenset({0, 1, 3}), 4)}


def test_a_row_that_ends_within_anothers_pages_and_grows():
    """All of row 0's pages are row 1's too; what it gets next may or may not be."""
    groups = index({0: [1, 2], 1: [1, 2, 3, 4]})
    groups.update(plan({0: (2, [3])}))
    assert as_sets(group(groups, [0, 1]), [0, 1]) == {(frozenset({0, 1}), 12)}
    groups.update(plan({0: (2, [9])}))  # written anew, as by a fork that leaves the page to the other
    assert as_sets(group(groups, [0, 1]), [0, 1]) == {(frozenset({0, 1}), 8)}


def test_a_row_with_a_gap_is_left_out_until_it_starts_anew():
    """After a step that failed, whose pages were never written."""
    groups = index({0: [1, 2], 1: [1, 3], 2: [1, 4]})
    groups.update(plan({0: (3, [5])}))
    assert as_sets(group(groups, [0, 1, 2]), [0, 1, 2]) == {(frozenset({1, 2}), 4)}
    groups.update(plan({0: (4, [6])}))
    groups.update(plan({0: (0, [1, 7])}))
    assert as_sets(group(groups, [0, 1, 2]), [0, 1, 2]) == {(frozenset({0, 1, 2}), 4)}


@pytest.mark.parametrize("seed", range(12))
def test_any_history_against_brute_force(seed):
    """Few different pages, so that rows share by chance; members and lengths save as much as the best grouping can."""
    random.seed(seed)
    groups, tables = PrefixGroups(16, 64, PAGE, PAGE, FREE), {}
    for _ in range(60):
        free = tuple(row for row in list(tables) if random.random() < 0.1)
        for row in free:
            del tables[row]
        writes = {}
        for row in random.sample(range(16), 4):
            start = random.choice([0, len(tables.get(row, [])), random.randint(0, len(tables.get(row, [])))])
            pages = [random.randint(0, 2) for _ in range(random.randint(1, 4))]
            if start + len(pages) <= 64:
                writes[row] = (start, pages)
                tables[row] = tables.get(row, [])[:start] + pages
        groups.update(plan(writes, free))
        rows = [row for row in tables if random.random() < 0.8]
        random.shuffle(rows)
        found = as_sets(group(groups, rows), rows)
        for members, length in found:
            assert len(members) > 1
            assert len({tuple(tables[row][: length // PAGE]) for row in members}) == 1
            assert all(len(tables[row]) * PAGE >= length for row in members)
        assert len([row for members, _ in found for row in members]) == len(
            {r for members, _ in found for r in members}
        )
        assert sum((len(members) - 1) * length for members, length in found) == best([tables[row] for row in rows])


def best(tables: list[list[int]], depth: int = 0) -> int:
    """Tokens that the best grouping saves: all of them at this depth, or each of their continuations by itself."""
    if len(tables) < 2:
        return 0
    longer = sorted((table for table in tables if len(table) > depth), key=lambda table: table[depth])
    apart = sum(best(list(same), depth + 1) for _, same in itertools.groupby(longer, lambda table: table[depth]))
    return max((len(tables) - 1) * depth * PAGE, apart)
