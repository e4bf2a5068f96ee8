"""Prompt attention against float64: chunks after cached prefixes, every option, every tile listed once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from attention_reference import Case, make_case, reference, relative_error

from octavo.kernels.triton.paged_extend import PagedExtend, plan_extend

SHAPE = {"num_kv_heads": 2, "group": 2, "head_dim": 64, "page_size": 16}


def check(
    case: Case,
    shape: dict[str, int],
    slopes: torch.Tensor | None = None,
    bound: float = 4e-3,
    padding: int = 0,
    **options: Any,
):
    op = PagedExtend(**shape, **{"block_m": 32, "block_n": 32, "num_warps": 4, **options})
    query_lens = case.query_start_loc.diff().cpu().numpy()
    window = options.get("window", 0)
    tiles = plan_extend(query_lens, case.seq_lens.cpu().numpy() - query_lens, op.tokens_per_tile, window=window)
    tiles = np.concatenate([tiles, np.full((padding, 2), -1, np.int32)])
    out = torch.full(case.q.shape, math.nan, device=case.q.device)
    lse = torch.full(case.q.shape[:2], math.nan, device=case.q.device)
    scales = {"k_scale": case.k_scale, "v_scale": case.v_scale}
    tiles = torch.from_numpy(tiles).to(case.q.device)
    op(*case.arguments(), tiles, case.scale, out, lse=lse, alibi_slopes=slopes, **scales)
    kinds = {k: v for k, v in options.items() if k in ("window", "softcap")}
    expected, expected_lse = reference(case, alibi_slopes=slopes, **kinds)
    assert relative_error(out, expected) < bound
    assert (lse.cpu().double() - expected_lse).abs().max() < 1e-3


def test_whole_prompts_and_chunks_after_a_prefix(device):
    check(make_case([70, 33, 100, 1], [70, 3, 40, 1], **SHAPE, device=device), SHAPE, padding=3)


@pytest.mark.parametrize(("head_dim", "page_size"), [(64, 128), (80, 16), (96, 32), (128, 64), (256, 16)])
def test_head_and_page_sizes(head_dim, page_size, device):
    shape = {"num_kv_heads": 1, "group": 2, "head_dim": head_dim, "page_size": page_size}
    check(make_case([75, 20], [40, 20], **shape, device=device), shape)


@pytest.mark.parametrize("group", [1, 5, 8])
def test_groups_and_float16(group, device):
    """5 query heads leave 2 of 32 tile rows empty."""
    shape = SHAPE | {"group": group}
    check(make_case([50], [30], **shape, dtype=torch.float16, device=device), shape, bound=1e-3)


@pytest.mark.parametrize("window", [5, 64, 1000])
def test_window(window, device):
    check(make_case([150, 40], [100, 40], **SHAPE, device=device), SHAPE, window=window)


def test_soft_cap_and_alibi(device):
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.06], device=device)
    check(make_case([90], [60], **SHAPE, device=device), SHAPE, slopes=slopes, softcap=3.0)


def test_fp8_keys_and_values(device):
    check(make_case([90, 40], [60, 40], **SHAPE, fp8=True, device=device), SHAPE)


def test_plan_lists_every_tile_once_and_the_longest_first():
    query_lens, context_lens = np.array([10, 1, 0, 33]), np.array([0, 500, 7, 100])
    tiles = plan_extend(query_lens, context_lens, 16, min_query_len=2)
    assert sorted(map(tuple, tiles.tolist())) == [(0, 0), (3, 0), (3, 1), (3, 2)]
    assert tiles.tolist() == [[3, 2], [3, 1], [3, 0], [0, 0]]
