"""From plans to attention: rows come, grow and go; whoever shares pages is found, sent and attended to right."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from attention_reference import Case, reference, relative_error

from octavo.kernels.triton.paged_decode import PagedDecode
from octavo.plan import StepPlan
from octavo.runner.prefix_groups import SharingCost
from octavo.runner.shared_prefix import SharedPages, shared_sizes

SHAPE = {"num_kv_heads": 1, "group": 2, "head_dim": 16, "page_size": 16}
ROWS, BLOCKS, PAGES = 6, 12, 40
FREE = SharingCost(token_bytes=1, member_bytes=0, group_bytes=0, step_bytes=0)


class Tables:
    """Block tables of a device, and plans that write to them."""

    def __init__(self, device: torch.device, cost: SharingCost = FREE):
        self.shared = SharedPages(
            **SHAPE, max_rows=ROWS, max_blocks=BLOCKS, cost=cost, ring=3, device=device, tile=16, num_programs=3
        )
        self.table, self.lens = np.full((ROWS, BLOCKS), 1 << 28, np.int32), np.zeros(ROWS, np.int32)
        self.steps = 0

    def step(self, rows: list[int], writes: dict[int, list[int]], free: tuple[int, ...] = ()) -> bool:
        """Decode `rows`, by one token each; `writes` starts rows anew with pages. Returns whether they share."""
        for row, pages in writes.items():
            self.table[row, : len(pages)], self.lens[row] = pages, len(pages) * 16 - 9
        lens = self.lens[rows]
        self.lens[rows] += 1
        ones = np.ones(len(rows), np.int32)
        plan = StepPlan(
            self.steps, np.array(rows, np.int32), ones, lens, ones > 0, ones == 0, ones[:0],
            free_rows=np.array(free, np.int32),
            block_rows=np.array(list(writes), np.int32),
            block_starts=np.zeros(len(writes), np.int32),
            block_counts=np.array([len(pages) for pages in writes.values()], np.int32),
            block_pages=np.array([page for pages in writes.values() for page in pages], np.int32),
        )  # fmt: skip
        self.shared.update(plan)
        self.steps += 1
        return self.shared.begin(plan, self.steps % 3)


def test_steps_of_a_history_against_float64(device):
    """The rows of a step stand in any order; groups change as rows begin and end."""
    tables, generator = Tables(device), torch.Generator().manual_seed(0)
    decode = PagedDecode(**SHAPE, max_rows=ROWS, device=device, num_programs=4, tile=16)
    kv = [torch.randn(PAGES, 1, 16, 16, generator=generator).to(torch.bfloat16).to(device) for _ in range(2)]
    history = [
        ([4, 0, 2], {0: [1, 2, 3], 2: [1, 2, 4, 5], 4: [1, 2, 6]}, (), {2, 0, 4}),
        ([3, 0, 4, 2, 1], {1: [7, 8, 9], 3: [7, 8, 10]}, (), {0, 1, 2, 3, 4}),
        ([1, 2, 0, 3], {}, (4,), {0, 1, 2, 3}),
        ([1, 0, 2, 5], {5: [7, 11]}, (3,), {0, 1, 2, 5}),
        ([1, 2], {}, (0, 5), set()),
    ]
    for rows, writes, free, sharing in history:
        shares = tables.step(rows, writes, free)
        kernel = tables.shared.kernel
        assert shares == bool(sharing)
        if not shares:
            continue
        lens = kernel.state[0].cpu().numpy()[: len(rows)]
        assert {row for row, n in zip(rows, lens, strict=True) if n} == sharing
        q = torch.randn(len(rows), 2, 16, generator=generator).to(torch.bfloat16).to(device)
        case = Case(
            q, *kv, torch.from_numpy(tables.table[rows]).to(device), torch.from_numpy(tables.lens[rows]).to(device),
            torch.arange(len(rows) + 1, dtype=torch.int32, device=device), 0.25,
        )  # fmt: skip
        out = torch.full(q.shape, math.nan, device=device)
        kernel.plan()
        decode.plan(case.seq_lens, case.query_start_loc, kernel.state[0])
        kernel(*case.arguments()[:4], case.scale)
        decode(*case.arguments(), case.scale, out, shared=kernel.state)
        assert relative_error(out, reference(case)[0]) < 4e-3


def test_groups_are_sent_only_when_they_change(device):
    tables = Tables(device)
    assert tables.step([0, 1], {0: [1, 2], 1: [1, 3]})
    tables.shared.kernel.groups.fill_(-1)
    assert tables.step([0, 1], {})
    assert (tables.shared.kernel.groups == -1).all()
    assert tables.step([1, 0], {})
    assert tables.shared.kernel.groups[:ROWS].tolist() == [16, 16, 0, 0, 0, 0]


def test_what_does_not_pay_is_not_shared(device):
    tables = Tables(device, SharingCost.of(1, 2, 16, 2))
    assert not tables.step([0, 1], {0: [1, 2], 1: [1, 3]})


@pytest.mark.parametrize("most", [4, 8, 100, 1024])
def test_sizes_with_sharing_are_some_of_the_sizes(most):
    ladder = [1, 2, 4, 8, *range(16, 257, 16), *range(288, 513, 32), *range(576, 1 << 16, 64)]
    sizes = [size for size in ladder if size < most] + [most]
    chosen = shared_sizes(sizes)
    assert set(chosen) <= set(sizes)
    assert chosen[-1] == most
    assert len(chosen) <= 20
    assert all(b <= 2 * a for a, b in itertools.pairwise(chosen))
