"""Rows that share pages: the shared keys once for all, then each tail, against float64 and against each row apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from attention_reference import Case, make_case, reference, relative_error

from octavo.kernels.triton.paged_decode import PagedDecode
from octavo.kernels.triton.shared_prefix import SharedPrefix, pack_groups

SHAPE = {"num_kv_heads": 1, "group": 3, "head_dim": 64, "page_size": 16}
Groups = list[tuple[list[int], int]]  # (rows, keys they share)


def share_pages(case: Case, groups: Groups) -> None:
    """Give the members of each group their first member's pages, and poison those that nobody has any more."""
    page_size = case.k_cache.shape[2]
    for rows, length in groups:
        pages = length // page_size
        for row in rows[1:]:
            orphans = case.block_table[row, :pages].long()
            for cache in (case.k_cache, case.v_cache):
                cache.view(torch.uint8)[orphans] = 0x7F if cache.dtype == torch.float8_e4m3fn else 0xFF  # NaN
            case.block_table[row, :pages] = case.block_table[rows[0], :pages]


def attend(case: Case, shape: dict[str, int], groups: Groups, *, tile: int = 16, softcap: float = 0.0, **options: int):
    """(output, lse, the ops), all that is written poisoned before."""
    rows, device = len(case.seq_lens), case.q.device
    common = {"max_rows": rows + 3, "device": device, "tile": tile, "softcap": softcap}
    shared = SharedPrefix(**shape, **common, **{"num_programs": 5, "block_m": 16, "min_share": 1, **options})
    decode = PagedDecode(**shape, **common, num_programs=7)
    for tensor in shared.state[1:]:
        tensor.fill_(math.nan)
    packed = np.full(shared.groups.shape, 1 << 20, np.int32)
    members, counts, lengths = flat(groups)
    pack_groups(packed, members, counts, lengths, shared.members_per_tile)
    shared.groups.copy_(torch.from_numpy(packed))
    out = torch.full(case.q.shape, math.nan, device=device)
    lse = torch.full(case.q.shape[:2], math.nan, device=device)
    scales = {"k_scale": case.k_scale, "v_scale": case.v_scale}
    shared.plan()
    decode.plan(case.seq_lens, case.query_start_loc, shared.state[0])
    shared(*case.arguments()[:4], case.scale, k_scale=case.k_scale)
    decode(*case.arguments(), case.scale, out, lse=lse, shared=shared.state, **scales)
    assert not shared._arrivals.any(), "counters must be zero for the next launch"
    return out, lse, shared


def flat(groups: Groups) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    members = [row for rows, _ in groups for row in rows]
    arrays = members, [len(rows) for rows, _ in groups], [length for _, length in groups]
    return tuple(np.array(array, np.int32) for array in arrays)


def check(case: Case, shape: dict[str, int], groups: Groups, *, softcap: float = 0.0, **options: int) -> None:
    share_pages(case, groups)
    out, lse, _ = attend(case, shape, groups, softcap=softcap, **options)
    expected, expected_lse = reference(case, softcap=softcap)
    assert relative_error(out, expected) < 4e-3
    assert (lse.cpu().double() - expected_lse).abs().max() < 1e-3
    if len(case.seq_lens) > 4:  # time
        return
    apart = PagedDecode(**shape, max_rows=len(case.seq_lens), device=case.q.device, softcap=softcap, tile=16)
    apart.plan(case.seq_lens, case.query_start_loc)
    alone = torch.full(case.q.shape, math.nan, device=case.q.device)
    apart(*case.arguments(), case.scale, alone, k_scale=case.k_scale, v_scale=case.v_scale)
    assert relative_error(out, alone.cpu().double()) < 4e-3


@pytest.mark.parametrize("num_programs", [1, 5, 64])
def test_groups_of_any_size_beside_rows_of_none(num_programs, device):
    """Two groups, one over two query tiles, a group of one, rows alone, in any order."""
    lens = [50, 33, 20, 60, 17, 70, 49, 64]
    groups = [([3, 0, 6, 5, 7, 1], 32), ([2], 16)]
    check(make_case(lens, [1] * 8, **SHAPE, device=device), SHAPE, groups, num_programs=num_programs)


@pytest.mark.parametrize("length", [16, 64])
def test_from_one_page_to_all_but_the_last_token(length, device):
    """A tail of one key is the least there is: the row's own token."""
    check(make_case([65, 65, 80], [1] * 3, **SHAPE, device=device), SHAPE, [([0, 1, 2], length)])


def test_a_group_of_many_tiles(device):
    """200 rows; through the interpreter, which takes its time, 33."""
    count = 200 if device.type == "cuda" else 33
    shape = {"num_kv_heads": 1, "group": 4, "head_dim": 64, "page_size": 16}
    lens = [33 + i % 13 for i in range(count + 2)]
    rows = [i for i in range(count + 2) if i not in (0, 20)]
    check(make_case(lens, [1] * len(lens), **shape, device=device), shape, [(rows, 32)])


@pytest.mark.parametrize(("head_dim", "page_size", "tile"), [(80, 16, 32), (96, 32, 32), (128, 64, 64), (64, 16, 64)])
def test_head_and_page_sizes(head_dim, page_size, tile, device):
    """Tiles within a page, and over several pages."""
    shape = {"num_kv_heads": 2, "group": 4, "head_dim": head_dim, "page_size": page_size}
    check(make_case([160, 129], [1] * 2, **shape, device=device), shape, [([1, 0], 128)], tile=tile)


@pytest.mark.parametrize("group", [1, 16, 20])
def test_numbers_of_query_heads(group, device):
    """One query head for each kv head, and more of them than a tile would hold."""
    shape = SHAPE | {"group": group}
    check(make_case([61, 50, 70], [1] * 3, **shape, device=device), shape, [([2, 0], 48)])


def test_fp8_keys_and_values(device):
    shape = SHAPE | {"num_kv_heads": 2}
    check(make_case([61, 50, 70], [1] * 3, **shape, fp8=True, device=device), shape, [([2, 0], 48)])


def test_soft_cap(device):
    check(make_case([70, 61, 50], [1] * 3, **SHAPE, device=device), SHAPE, [([1, 0], 48)], softcap=3.0)


def test_no_groups_is_plain_decode(device):
    """What a graph for groups computes in a step that has none; lengths of 0 are padding."""
    case = make_case([70, 0, 50], [1] * 3, **SHAPE, device=device)
    out, _, _ = attend(case, SHAPE, [])
    expected, _ = reference(case)
    assert relative_error(out[[0, 2]], expected[[0, 2]]) < 4e-3
    assert out[1].isnan().all()


def test_one_instance_serves_many_groupings(device):
    """As a graph does: the same launches, other groups, sent anew."""
    shared = SharedPrefix(**SHAPE, max_rows=4, device=device, num_programs=6, tile=16, block_m=16, min_share=1)
    decode = PagedDecode(**SHAPE, max_rows=4, device=device, num_programs=6, tile=16)
    for seed, groups in enumerate([[([0, 1, 2, 3], 48)], [([2, 0], 16), ([1, 3], 64)], [], [([3, 1, 0], 32)]]):
        case = make_case([65, 80, 100, 75], [1] * 4, **SHAPE, seed=seed, device=device)
        share_pages(case, groups)
        packed = np.zeros(17, np.int32)
        pack_groups(packed, *flat(groups), shared.members_per_tile)
        shared.groups.copy_(torch.from_numpy(packed))
        shared.plan()
        decode.plan(case.seq_lens, case.query_start_loc, shared.state[0])
        out = torch.zeros_like(case.q, dtype=torch.float32)
        shared(*case.arguments()[:4], case.scale)
        decode(*case.arguments(), case.scale, out, shared=shared.state)
        assert relative_error(out, reference(case)[0]) < 4e-3


def test_packed_groups():
    """Tiles of up to three members; what is past the last tile has none."""
    out = np.full(4 * 6 + 1, -1, np.int32)
    pack_groups(out, *flat([([5, 0, 2, 1], 32), ([4, 3], 16)]), 3)
    shared_lens, members, tile_lens, tile_starts = out[:6], out[6:12], out[12:18], out[18:]
    assert shared_lens.tolist() == [32, 32, 32, 16, 16, 32]
    assert members.tolist() == [5, 0, 2, 1, 4, 3]
    assert tile_lens.tolist() == [32, 32, 16, 0, 0, 0]
    assert tile_starts.tolist() == [0, 3, 4, 6, 6, 6, 6]


def test_windows_are_refused(device):
    case = make_case([70, 60], [1, 1], **SHAPE, device=device)
    decode = PagedDecode(**SHAPE, max_rows=2, device=device, window=32)
    state = SharedPrefix(**SHAPE, max_rows=2, device=device).state
    with pytest.raises(ValueError, match="window"):
        decode(*case.arguments(), case.scale, torch.empty_like(case.q), shared=state)
