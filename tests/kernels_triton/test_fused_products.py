"""Products with the norm before and the gate or the sum after them, against float64."""

from __future__ import annotations

import pytest
import torch
from attention_reference import relative_error

pytest.importorskip("triton")

from octavo.kernels.triton.gated_linear import EVERY_TILE, FEW_ROWS, TILES, GatedTile, choose_tile, gated_linear
from octavo.kernels.triton.gemv import GemvTile, gemv
from octavo.kernels.triton.skinny_linear import SplitSpace, Tuning, skinny_linear

BF16 = 5e-3
EPS = 1e-5


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def gate64(both: torch.Tensor) -> torch.Tensor:
    """Gates are the even columns."""
    return torch.nn.functional.silu(both[:, 0::2]) * both[:, 1::2]


def norm64(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * gain.double()


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("outputs", "columns"), [(24, 256), (18, 200), (6, 33)])
@pytest.mark.parametrize("fp8", [False, True])
def test_one_or_two_rows_with_all_that_may_be_around_them(rows, outputs, columns, fp8, device):
    wide = randn(rows, columns + 8, scale=3.0).to(device)
    x, gain, bias = wide[:, :columns], randn(columns, seed=1).to(device), randn(outputs, seed=2).to(device)
    weight = randn(outputs, columns, seed=3, scale=columns**-0.5).to(device)
    scales, plain = None, weight.double()
    if fp8:
        scales = torch.rand(outputs, generator=torch.Generator().manual_seed(4)).to(device) + 0.1
        weight = (weight.float() / scales[:, None]).to(torch.float8_e4m3fn)
        plain = weight.double() * scales[:, None].double()
    options = {"scales": scales, "tile": GemvTile(4, 64, 2, 1)}
    product, normed = x.double() @ plain.T, norm64(x, gain) @ plain.T
    assert relative_error(gemv(x, weight, **options), product) < BF16
    assert relative_error(gemv(x, weight, bias, gain=gain, eps=EPS, **options), normed + bias.double()) < BF16
    gated = gemv(x, weight, bias, gain=gain, eps=EPS, gated=True, **options)
    assert gated.shape == (rows, outputs // 2)
    assert relative_error(gated, gate64(normed + bias.double())) < 2 * BF16
    onto = randn(rows, outputs, seed=5).to(device)
    expected = onto.double() + product
    assert gemv(x, weight, onto=onto, **options) is onto
    assert relative_error(onto, expected) < BF16


def test_a_row_does_not_see_the_other(device):
    x, weight, gain = randn(2, 64).to(device), randn(8, 64, seed=1).to(device), randn(64, seed=2).to(device)
    options = {"gain": gain, "eps": EPS, "tile": GemvTile(4, 32, 1, 1)}
    together = gemv(x, weight, **options)
    x[0] = float("nan")
    apart = gemv(x, weight, **options)
    assert apart[0].isnan().all()
    assert torch.equal(apart[1], together[1])


def test_rows_that_gemv_does_not_take(device):
    x, weight = randn(3, 64).to(device), randn(8, 64).to(device)
    assert gemv(x[:0], weight, gated=True).shape == (0, 4)
    with pytest.raises(ValueError, match="3 rows, at most 2"):
        gemv(x, weight)


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("outputs", [32, 24])
def test_few_rows_gated_and_onto(split, outputs, device):
    x, weight, bias = (
        randn(5, 128).to(device),
        randn(outputs, 128, seed=1, scale=0.1).to(device),
        randn(outputs).to(device),
    )
    options = {"tuning": Tuning(16, 32, split, 2), "space": SplitSpace(device, 1 << 14, 64)}
    product = x.double() @ weight.double().T
    gated = skinny_linear(x, weight, bias, gated=True, **options)
    assert relative_error(gated, gate64(product + bias.double())) < 2 * BF16
    onto = randn(5, outputs, seed=5).to(device)
    expected = onto.double() + product
    assert skinny_linear(x, weight, onto=onto, **options) is onto
    assert relative_error(onto, expected) < BF16


@pytest.mark.parametrize("rows", [1, 17, 64, 100])
@pytest.mark.parametrize("outputs", [128, 72])
def test_gated_linear(rows, outputs, device):
    x, weight = randn(rows, 160).to(device), randn(outputs, 160, seed=1, scale=0.1).to(device)
    bias = randn(outputs, seed=2).to(device)
    product = x.double() @ weight.double().T
    for tile in (None, GatedTile(16, 32, 32, 2, 4, 0.0), GatedTile(64, 64, 64, 2, 4, 0.0)):
        assert relative_error(gated_linear(x, weight, tile=tile), gate64(product)) < BF16
    assert relative_error(gated_linear(x, weight, bias), gate64(product + bias.double())) < BF16
    assert gated_linear(x[:0], weight).shape == (0, outputs // 2)


@pytest.mark.parametrize("rows", [17, 64, 65, 128, 200, 448, 512, 8192])
def test_tiles_of_an_h100_take_the_fewest_waves_for_their_cost(rows):
    found = choose_tile(rows, 28672, 132)
    assert found == {17: FEW_ROWS, 64: FEW_ROWS, 448: TILES[1], 8192: TILES[0], 512: TILES[2]}.get(rows, found)
    assert found in EVERY_TILE
