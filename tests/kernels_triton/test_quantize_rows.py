"""Rows to e4m3: scales, saturation, zeros, outliers, NaN that stays in its row; and scales put back on a product."""

from __future__ import annotations

import math

import pytest
import torch
from attention_reference import relative_error

from octavo.kernels import fp8
from octavo.kernels.triton.quantize import quantize_rows, scale_product
from octavo.kernels.triton.rms_norm import rms_norm_fp8
from octavo.kernels.triton.silu_and_mul import silu_and_mul_fp8


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.cpu().view(torch.uint8)


@pytest.mark.parametrize("size", [1, 16, 100, 1024])
def test_the_same_as_the_reference(size, device):
    x = (randn(7, size) * torch.tensor([1e-3, 1, 50, 1e4, 0, 1e-26, 1e37])[:, None]).bfloat16()
    out, scales = quantize_rows(x.to(device))
    wanted = fp8.quantize_rows(x)
    assert torch.allclose(scales.cpu(), wanted.scales, rtol=1e-6, atol=0)
    assert (bits(out) != bits(wanted.values)).float().mean() < 0.01, "a tie may round the other way"
    for row in (0, 1, 2, 3, 5, 6):
        assert relative_error(out[row].float().cpu() * scales[row].cpu(), x[row].double()) < 4e-2
    assert scales[4] == 1 and not out[4].float().any()
    least, scale = quantize_rows(torch.full((1, size), 1e-37, device=device).bfloat16())
    assert least.float().isfinite().all() and scale > 0, "what is too small becomes 0"


def test_strided_rows_and_none(device):
    x = randn(6, 40).to(device)
    every_second, scales = quantize_rows(x[::2, :33])
    whole, wanted = quantize_rows(x[::2, :33].contiguous())
    assert torch.equal(bits(every_second), bits(whole)) and torch.equal(scales, wanted)
    assert quantize_rows(x[:0])[0].shape == (0, 40)


def test_an_outlier_takes_the_range_of_its_row_alone(device):
    x = randn(3, 64)
    x[1, 5] = 1e4
    out, scales = quantize_rows(x.to(device))
    assert out[1].float().abs().max() == 448 and scales[1] == pytest.approx(1e4 / 448, rel=1e-2)
    alone, _ = quantize_rows(x[2:].to(device))
    assert torch.equal(bits(out[2:]), bits(alone))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_row(bad, device):
    x = randn(3, 64)
    x[1, 5] = bad
    for out, scales in (
        quantize_rows(x.to(device)),
        rms_norm_fp8(x.to(device), None, torch.ones(64, device=device).bfloat16(), 1e-6),
        silu_and_mul_fp8(x.abs().to(device)),  # the gate of -inf is 0, as it should be
    ):
        product = (out.float() @ torch.ones(out.shape[1], 2, device=out.device)) * scales
        assert product[[0, 2]].isfinite().all()
        assert not product[1].isfinite().any()


@pytest.mark.parametrize("with_bias", [False, True])
def test_scales_on_a_product(with_bias, device):
    y, rows, columns, bias = randn(5, 70), torch.rand(5, 1) + 0.1, torch.rand(70) + 0.1, randn(70, seed=1)
    wanted = y.double() * rows * columns + (bias.double() if with_bias else 0)
    on = y.to(device)
    found = scale_product(on, rows.to(device), columns.to(device), bias.to(device) if with_bias else None)
    assert found is on
    assert relative_error(found, wanted) < 4e-3
