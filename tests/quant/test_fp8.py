"""Linear layers of 8-bit floats: what is kept, how far products are off, and that rows keep to themselves."""

from __future__ import annotations

import math

import pytest
import torch

from octavo.kernels.fp8 import quantize_rows
from octavo.kernels.rms_norm import add_rms_norm, add_rms_norm_e4m3
from octavo.kernels.silu_and_mul import silu_and_mul, silu_and_mul_e4m3
from octavo.quant import schemes
from octavo.quant.fp8 import Fp8, Fp8Params

CPU = torch.device("cpu")


def make(scheme: Fp8, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Fp8Params:
    return scheme.make(weight, bias, device=CPU, dtype=torch.float32)


def case(rows: int = 50, columns: int = 96, count: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(rows, columns, generator=generator), torch.randn(rows, generator=generator)
    return weight, bias, torch.randn(count, columns, generator=generator)


def off(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("per_tensor", [False, True])
def test_weights_keep_their_largest_and_lose_less_than_a_sixteenth(per_tensor: bool) -> None:
    weight, _, _ = case()
    weight[7] *= 40
    weight[9] = 0
    params = make(Fp8(per_tensor=per_tensor), weight)
    held = params.weight.double() * params.scale[:, None]
    assert held[7].abs().max() == pytest.approx(weight[7].abs().max().item(), rel=1e-6)
    assert not held[9].any() and params.scale[9] > 0
    large = weight.abs() > weight.abs().amax(1, keepdim=True) / 100
    if per_tensor:
        assert len(params.scale.unique()) == 1
        large &= weight.abs() > weight.abs().max() / 10_000
    assert ((held - weight).abs() <= weight.abs() / 16 + 1e-12)[large].all()


@pytest.mark.parametrize("per_tensor", [False, True])
def test_products_are_near_the_exact_ones(per_tensor: bool) -> None:
    weight, bias, x = case()
    scheme = Fp8(per_tensor=per_tensor)
    exact = x.double() @ weight.double().T
    plain = scheme.apply(x, make(scheme, weight))
    assert plain.dtype == torch.float32 and plain.shape == (9, 50)
    assert off(plain, exact) < 0.05
    assert torch.allclose(scheme.apply(x, make(scheme, weight, bias)) - bias, plain, rtol=0, atol=1e-5)
    assert scheme.apply(x[:0], make(scheme, weight)).shape == (0, 50)


def test_the_product_is_the_one_of_the_quantized_factors() -> None:
    weight, bias, x = case()
    params, rows = make(Fp8(), weight, bias), quantize_rows(x)
    exact = (rows.values.double() * rows.scales) @ (params.weight.double() * params.scale[:, None]).T + bias
    assert off(Fp8().apply(x, params), exact) < 1e-6
    assert torch.equal(Fp8().apply(rows, params), Fp8().apply(x, params))


def test_a_row_does_not_depend_on_its_batch() -> None:
    weight, bias, x = case(count=40)
    params = make(Fp8(), weight, bias)
    together = Fp8().apply(x, params)
    for part in (slice(0, 1), slice(5, 6), slice(3, 20)):
        assert torch.equal(Fp8().apply(x[part], params), together[part])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_row_breaks_no_other(bad: float) -> None:
    weight, _, x = case()
    params = make(Fp8(), weight)
    right = Fp8().apply(x, params)
    x[4, 3] = bad
    found = Fp8().apply(x, params)
    others = [i for i in range(len(x)) if i != 4]
    assert torch.equal(found[others], right[others])
    assert not found[4].isfinite().any()


def test_norm_and_gate_hand_over_what_the_product_would_make() -> None:
    _, _, x = case()
    residual, gain = x.flip(0).clone(), torch.rand(96) + 0.5
    normed, total = add_rms_norm(x, residual.clone(), gain, 1e-5)
    rows, same = add_rms_norm_e4m3(x, residual.clone(), gain, 1e-5)
    assert torch.equal(same, total)
    assert torch.equal(rows.values.float(), quantize_rows(normed).values.float())
    first, kept = add_rms_norm_e4m3(x, None, gain, 1e-5)
    assert torch.equal(kept, x) and first.scales.shape == (9, 1)
    gated = silu_and_mul_e4m3(x)
    assert torch.equal(gated.values.float(), quantize_rows(silu_and_mul(x)).values.float())


def test_rows_are_rows_of_the_matrix_and_heads_are_not_quantized() -> None:
    weight, _, _ = case()
    params, ids = make(Fp8(), weight), torch.tensor([49, 0, 7, 7])
    assert off(Fp8().rows(ids, params), weight[ids]) < 0.04
    both = schemes("fp8")
    assert both.usual.form == "e4m3" and both.for_head is not None and both.for_head.form == "plain"
