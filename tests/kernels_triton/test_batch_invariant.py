"""Rows that are the same, to the bit, in any batch: products, sums over the vocabulary, attention."""

from __future__ import annotations

import math

import pytest
import torch
from attention_reference import Case, make_case, reference, relative_error

from octavo.kernels.triton.invariant_attention import InvariantAttention
from octavo.kernels.triton.invariant_linear import InvariantTile, invariant_linear
from octavo.kernels.triton.quantize import quantize_rows
from octavo.kernels.triton.row_logsumexp import row_logsumexp

SMALL = InvariantTile(block_m=32, block_n=16, block_k=32, stages=2, band=3)


def make(rows, outputs, columns, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator).bfloat16().to(device)
    weight = (torch.randn(outputs, columns, generator=generator) / columns**0.5).bfloat16().to(device)
    return x, weight, torch.randn(outputs, generator=generator).bfloat16().to(device)


@pytest.mark.parametrize("rows", [1, 33, 70])
@pytest.mark.parametrize(("outputs", "columns"), [(64, 96), (40, 200), (7, 33), (130, 64)])
def test_products_against_float64(rows, outputs, columns, device):
    x, weight, bias = make(rows, outputs, columns, device)
    for use_bias in (None, bias):
        y = invariant_linear(x, weight, use_bias, tile=SMALL)
        wanted = x.double() @ weight.double().T + (0 if use_bias is None else bias.double())
        assert y.dtype == x.dtype and y.shape == (rows, outputs)
        assert relative_error(y, wanted.cpu()) < 4e-3
    assert invariant_linear(x[:0], weight).shape == (0, outputs)


@pytest.mark.parametrize("fp8", [False, True])
def test_a_row_of_a_product_is_the_same_in_every_batch(fp8, device):
    x, weight, bias = make(70, 48, 160, device)
    options = {}
    if fp8:
        (x, x_scales), (weight, w_scales) = quantize_rows(x), quantize_rows(weight)
        options = {"w_scales": w_scales[:, 0].contiguous(), "dtype": torch.bfloat16}
    together = None
    for start, count in ((0, 70), *((3 * count % 60, count) for count in (1, 2, 5, 9, 16, 31, 32, 33))):
        part = slice(start, start + count)
        if fp8:
            options["x_scales"] = x_scales[part]
        y = invariant_linear(x[part], weight, bias, tile=SMALL, **options)
        together = y if together is None else together
        assert torch.equal(y, together[part]), (start, count)


def test_products_of_e4m3(device):
    x, weight, bias = make(9, 50, 70, device)
    (x8, x_scales), (w8, w_scales) = quantize_rows(x), quantize_rows(weight)
    scales = {"x_scales": x_scales, "w_scales": w_scales[:, 0].contiguous()}
    y = invariant_linear(x8, w8, bias, **scales, dtype=torch.bfloat16, tile=SMALL)
    exact = (x8.double() * x_scales) @ (w8.double() * w_scales).T + bias.double()
    assert relative_error(y, exact.cpu()) < 4e-3


@pytest.mark.parametrize("size", [3, 2048, 5000])
def test_log_sum_exp(size, device):
    x = (torch.randn(4, size, generator=torch.Generator().manual_seed(0)) * 20).bfloat16().to(device)
    x[1] += 900
    x[2, 1:] = -math.inf
    found = row_logsumexp(x)
    assert torch.allclose(found.cpu().double(), x.cpu().double().logsumexp(1, keepdim=True), rtol=1e-6, atol=1e-5)
    assert torch.equal(row_logsumexp(x[1:2]), found[1:2])
    x[3, 2] = math.nan
    assert row_logsumexp(x).isnan().flatten().tolist() == [False, False, False, True]


SHAPE = {"num_kv_heads": 1, "group": 3, "head_dim": 64, "page_size": 16}
TINY = {"block_m": 16, "tile": 16, "unit": 32, "num_stages": 2}


def attend(case: Case, queries: list[tuple[int, int]], op: InvariantAttention, **scales) -> list[torch.Tensor]:
    """The last tokens' outputs of rows of `case`: for each (row, length) the rows' last query at that length."""
    q_of, lens, tables = [], [], []
    starts = case.query_start_loc.tolist()
    for row, length in queries:
        first = int(case.seq_lens[row]) - (starts[row + 1] - starts[row])
        q_of.append(case.q[starts[row] + length - 1 - first])
        lens.append(length)
        tables.append(case.block_table[row])
    q, device = torch.stack(q_of), case.q.device
    out = torch.full_like(q, math.nan)
    order = torch.arange(len(lens) + 1, dtype=torch.int32, device=device)
    tiles = torch.stack([order[:-1], torch.zeros_like(order[:-1])], 1)
    seq_lens = torch.tensor(lens, dtype=torch.int32, device=device)
    op(q, case.k_cache, case.v_cache, torch.stack(tables), seq_lens, order, tiles, case.scale, out, **scales)
    return list(out)


def prompt(case: Case, op: InvariantAttention, **scales) -> torch.Tensor:
    """All of a case's queries."""
    out = torch.full_like(case.q, math.nan)
    counts = case.query_start_loc.diff().tolist()
    tiles = [[row, t] for row, n in enumerate(counts) for t in range(-(-n // op.tokens_per_tile))] + [[-1, 0]]
    on_device = torch.tensor(tiles, dtype=torch.int32, device=case.q.device)
    op(*case.arguments(), on_device, case.scale, out, **scales)
    return out


@pytest.mark.parametrize(("fp8", "options"), [(True, {}), (False, {"window": 40}), (False, {"softcap": 5.0})])
def test_attention_against_float64(fp8, options, device):
    case = make_case([90, 33, 7], [41, 1, 7], **SHAPE, fp8=fp8, device=device)
    op = InvariantAttention(**SHAPE, **TINY, **options, max_keys=128, device=device)
    out = prompt(case, op, k_scale=case.k_scale, v_scale=case.v_scale)
    assert relative_error(out, reference(case, **options)[0]) < 6e-3


@pytest.mark.parametrize(("fp8", "window"), [(False, 0), (True, 40)])
def test_decode_prompt_chunk_and_batch_are_one(fp8, window, device):
    """Split over programs or not, whichever tile of queries a token is in: the same bits."""
    case = make_case([90, 40], [90, 40], **SHAPE, fp8=fp8, device=device)
    scales = {"k_scale": case.k_scale, "v_scale": case.v_scale}
    split, whole = (
        InvariantAttention(**SHAPE, **TINY, window=window, max_keys=96, device=device, split_up_to=n) for n in (99, 0)
    )
    full = prompt(case, whole, **scales)
    assert torch.equal(prompt(case, split, **scales), full)
    lengths = [(0, n) for n in (1, 16, 17, 32, 33, 64, 65, 90)] + [(1, 40), (1, 31)]
    wanted = [full[n - 1 + 90 * row] for row, n in lengths]
    for op in (split, whole):
        together = attend(case, lengths, op, **scales)
        assert all(torch.equal(a, b) for a, b in zip(together, wanted, strict=True))
        for i in (4, 9):
            assert torch.equal(attend(case, lengths[i : i + 1], op, **scales)[0], wanted[i])
    assert not split._arrivals.any()


def test_rows_that_fill_a_batch_are_left_alone(device):
    case = make_case([20], [1], **SHAPE, device=device)
    op = InvariantAttention(**SHAPE, **TINY, max_keys=64, device=device)
    out = torch.full((3, 3, 64), math.nan, dtype=torch.bfloat16, device=device)
    table = torch.cat([case.block_table] * 3)
    lens, starts = torch.tensor([20, 0, 0], device=device).int(), torch.tensor([0, 1, 1, 1], device=device).int()
    tiles = torch.tensor([[0, 0], [1, 0], [2, 0]], device=device).int()
    op(case.q.repeat(3, 1, 1), case.k_cache, case.v_cache, table, lens, starts, tiles, case.scale, out)
    assert out[0].isfinite().all() and out[1:].isnan().all()
