"""Split decode attention against float64: any lengths, any cut, any option, nothing read past a sequence's end."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from attention_reference import Case, make_case, reference, relative_error

from octavo.kernels.triton.paged_decode import PagedDecode

SHAPE = {"num_kv_heads": 2, "group": 3, "head_dim": 64, "page_size": 16}


def attend(case: Case, shape: dict[str, int], slopes: torch.Tensor | None = None, **options: Any):
    """(output, lse, the op), both poisoned before."""
    query_lens = case.query_start_loc.diff()
    options = {"max_query_len": int(query_lens.max()), "num_programs": 7, "tile": 32, **options}
    op = PagedDecode(**shape, max_rows=len(case.seq_lens), device=case.q.device, **options)
    out = torch.full(case.q.shape, math.nan, device=case.q.device)
    lse = torch.full(case.q.shape[:2], math.nan, device=case.q.device)
    op.plan(case.seq_lens, case.query_start_loc)
    scales = {"k_scale": case.k_scale, "v_scale": case.v_scale}
    op(*case.arguments(), case.scale, out, lse=lse, alibi_slopes=slopes, **scales)
    return out, lse, op


def check(case: Case, shape: dict[str, int], slopes: torch.Tensor | None = None, bound: float = 4e-3, **options: Any):
    out, lse, op = attend(case, shape, slopes, **options)
    kinds = {k: v for k, v in options.items() if k in ("window", "softcap")}
    expected, expected_lse = reference(case, alibi_slopes=slopes, **kinds)
    assert relative_error(out, expected) < bound
    assert (lse.cpu().double() - expected_lse).abs().max() < 1e-3
    assert not op._arrivals.any(), "counters must be zero for the next launch"


@pytest.mark.parametrize("num_programs", [1, 5, 64])
def test_any_number_of_programs_gives_the_same(num_programs, device):
    case = make_case([1, 97, 33, 250], [1] * 4, **SHAPE, device=device)
    check(case, SHAPE, num_programs=num_programs)


@pytest.mark.parametrize(("head_dim", "page_size"), [(64, 128), (80, 16), (96, 32), (128, 64), (256, 16)])
def test_head_and_page_sizes(head_dim, page_size, device):
    shape = {"num_kv_heads": 1, "group": 4, "head_dim": head_dim, "page_size": page_size}
    check(make_case([130, 5], [1, 1], **shape, device=device), shape)


@pytest.mark.parametrize("group", [1, 7, 16])
def test_groups_and_float16(group, device):
    shape = SHAPE | {"group": group}
    check(make_case([70, 31], [1, 1], **shape, dtype=torch.float16, device=device), shape, bound=1e-3)


def test_several_query_tokens_a_row(device):
    check(make_case([8, 60, 100, 3], [8, 5, 1, 3], **SHAPE, device=device), SHAPE)


def test_window(device):
    check(make_case([200, 40, 5], [2, 1, 1], **SHAPE, device=device), SHAPE, window=37)


def test_soft_cap(device):
    check(make_case([100, 3], [1, 1], **SHAPE, device=device), SHAPE, softcap=3.0)


def test_alibi(device):
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.06, 0.03, 0.015], device=device)
    check(make_case([100, 3], [1, 2], **SHAPE, device=device), SHAPE, slopes=slopes)


def test_fp8_keys_and_values(device):
    check(make_case([150, 64, 9], [1, 1, 1], **SHAPE, fp8=True, device=device), SHAPE)


def test_rows_of_others_are_left_alone(device):
    """Rows of length 0, without queries, or with too many are other kernels' work."""
    case = make_case([50, 0, 40, 33, 20], [1, 1, 20, 0, 2], **SHAPE, device=device)
    out, _, _ = attend(case, SHAPE, max_query_len=2)
    expected, _ = reference(case)
    mine = [0, 22, 23]
    assert relative_error(out[mine], expected[mine]) < 4e-3
    assert out[1:22].isnan().all()


def test_one_instance_serves_many_steps(device):
    """As a graph does: the same launches, other lengths."""
    op = PagedDecode(**SHAPE, max_rows=4, device=device, num_programs=9, tile=16)
    for seed, lens in enumerate([[3, 90, 7, 1], [64, 65, 0, 63], [0, 0, 0, 200], [1, 1, 1, 1]]):
        case = make_case(lens, [1] * 4, **SHAPE, seed=seed, device=device)
        out = torch.zeros_like(case.q, dtype=torch.float32)
        op.plan(case.seq_lens, case.query_start_loc)
        op(*case.arguments(), case.scale, out)
        assert relative_error(out, reference(case)[0]) < 4e-3


def test_fixed_split_is_bitwise_the_same_in_any_batch(device):
    """A row alone, and among others, with other numbers of programs."""
    lens = [130, 31, 64, 200]
    case = make_case(lens, [1] * 4, **SHAPE, device=device)
    together, _, _ = attend(case, SHAPE, fixed_split=64, max_keys=512)
    assert relative_error(together, reference(case)[0]) < 4e-3
    for r in range(4):
        alone = Case(
            case.q[r : r + 1], case.k_cache, case.v_cache, case.block_table[r : r + 1], case.seq_lens[r : r + 1],
            case.query_start_loc[:2], case.scale,
        )  # fmt: skip
        out, _, _ = attend(alone, SHAPE, fixed_split=64, max_keys=512, num_programs=3)
        assert torch.equal(out[0], together[r])


def test_parts_over_disjoint_keys_merge_from_out_and_lse(device):
    """What a shared prefix needs: attention over keys [0, 48) and [48, n), merged, is attention over all."""
    case = make_case([100], [1], **SHAPE, device=device)
    whole, whole_lse = reference(case)
    parts = []
    for first, last in ((0, 48), (48, 100)):
        table = case.block_table[:, first // 16 :]
        length = torch.tensor([last - first], dtype=torch.int32, device=device)
        part = Case(case.q, case.k_cache, case.v_cache, table, length, case.query_start_loc, case.scale)
        parts.append(attend(part, SHAPE)[:2])
    lse = torch.stack([p[1] for p in parts])
    weights = lse.softmax(0)[..., None]
    assert relative_error((weights * torch.stack([p[0] for p in parts])).sum(0), whole) < 4e-3
    assert (lse.logsumexp(0).cpu() - whole_lse).abs().max() < 1e-3


def test_plan_shares_every_unit_once(device):
    """Programs' shares are equal, follow each other, and cover all tiles of all heads."""
    lens = [0, 100, 1, 0, 500, 33]
    seq_lens = torch.tensor(lens, dtype=torch.int32, device=device)
    starts = torch.arange(7, dtype=torch.int32, device=device)
    op = PagedDecode(**SHAPE, max_rows=8, device=device, num_programs=10, tile=32)
    op.plan(seq_lens, starts)
    row, offset, count, share = op.plan_buffer.cpu().T
    units = [2 * -(-n // 32) for n in lens]
    line = [(r, i) for r, n in enumerate(units) for i in range(n)]
    begin = 0
    for p in range(10):
        if count[p]:
            assert (int(row[p]), int(offset[p])) == line[begin]
        begin += int(count[p])
    assert begin == len(line)
    assert int(count.max()) == int(share[0]) == -(-len(line) // 10)
