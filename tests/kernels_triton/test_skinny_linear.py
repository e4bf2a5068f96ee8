"""Products of a few rows, against float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from octavo.kernels.triton.skinny_linear import MAX_ROWS, SplitSpace, Tuning, skinny_linear


def make(rows, outputs, columns, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator).bfloat16().to(device)
    weight = (torch.randn(outputs, columns, generator=generator) / columns**0.5).bfloat16().to(device)
    return x, weight, torch.randn(outputs, generator=generator).bfloat16().to(device)


@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize(("outputs", "columns"), [(32, 256), (40, 200), (7, 33)])
@pytest.mark.parametrize("split", [1, 3])
def test_against_float64(rows, outputs, columns, split, device):
    x, weight, bias = make(rows, outputs, columns, device)
    tuning = Tuning(block_n=16, block_k=32, split=split, stages=2)
    space = SplitSpace(device, 1 << 14, 64)
    for use_bias in (None, bias):
        y = skinny_linear(x, weight, use_bias, tuning=tuning, space=space)
        wanted = x.double() @ weight.double().T + (0 if use_bias is None else bias.double())
        assert y.dtype == x.dtype
        assert torch.allclose(y.double(), wanted, rtol=1e-2, atol=1e-2)
    assert not space.arrivals.any()


def test_a_row_is_the_same_in_every_batch(device):
    x, weight, _ = make(MAX_ROWS, 64, 256, device)
    tuning, space = Tuning(block_k=64, split=2, stages=2), SplitSpace(device, 1 << 14, 64)
    together = skinny_linear(x, weight, tuning=tuning, space=space)
    for i in range(0, MAX_ROWS, 5):
        assert torch.equal(skinny_linear(x[i : i + 1], weight, tuning=tuning, space=space), together[i : i + 1])


def test_strided_rows_and_none(device):
    x, weight, _ = make(8, 16, 64, device)
    tuning = Tuning(block_k=32, stages=2)
    assert torch.equal(
        skinny_linear(x[::2], weight, tuning=tuning), skinny_linear(x[::2].contiguous(), weight, tuning=tuning)
    )
    assert skinny_linear(x[:0], weight).shape == (0, 16)


def test_too_many_rows_are_refused(device):
    x, weight, _ = make(MAX_ROWS + 1, 16, 64, device)
    with pytest.raises(ValueError, match="17 rows"):
        skinny_linear(x, weight)
    with pytest.raises(ValueError, match="more space"):
        skinny_linear(x[:1], weight, tuning=Tuning(split=2))
