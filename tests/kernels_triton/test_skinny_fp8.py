"""Products of a few e4m3 rows, against float64; and the choice between ways of making them."""

from __future__ import annotations

import pytest
import torch
from attention_reference import relative_error

from octavo.kernels import fp8, tuned_fp8
from octavo.kernels.triton.quantize import quantize_rows
from octavo.kernels.triton.skinny_fp8 import MAX_ROWS, skinny_fp8
from octavo.kernels.triton.skinny_linear import SplitSpace, Tuning


def make(rows, outputs, columns, device):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, columns, generator=generator).bfloat16().to(device)
    weight = (torch.randn(outputs, columns, generator=generator) / columns**0.5).bfloat16().to(device)
    w, scales = quantize_rows(weight)
    return (
        *quantize_rows(x),
        w,
        scales[:, 0].contiguous(),
        torch.randn(outputs, generator=generator).bfloat16().to(device),
    )


@pytest.mark.parametrize(
    ("rows", "outputs", "columns"), [(1, 32, 256), (5, 7, 33), (16, 40, 200), (17, 16, 64), (128, 16, 64)]
)
@pytest.mark.parametrize("split", [1, 3])
def test_against_float64(rows, outputs, columns, split, device):
    x, x_scales, w, w_scales, bias = make(rows, outputs, columns, device)
    tuning, space = Tuning(16, 32, split, 2, 2), SplitSpace(device, 1 << 16, 64)
    for use_bias in (None, bias):
        options = {"dtype": torch.bfloat16, "tuning": tuning, "space": space}
        y = skinny_fp8(x, x_scales, w, w_scales, use_bias, **options)
        exact = (x.double() * x_scales) @ (w.double() * w_scales[:, None]).T + (
            0 if use_bias is None else bias.double()
        )
        assert y.shape == (rows, outputs) and y.dtype == torch.bfloat16
        assert relative_error(y, exact.cpu()) < 4e-3
    assert not space.arrivals.any()


def test_a_row_with_nan_spoils_no_other(device):
    x, x_scales, w, w_scales, _ = make(4, 16, 64, device)
    x_scales[2] = float("nan")
    y = skinny_fp8(x, x_scales, w, w_scales, dtype=torch.bfloat16, tuning=Tuning(16, 32, 1, 2, 2))
    assert y.isnan().all(1).tolist() == [False, False, True, False] and y[[0, 1, 3]].isfinite().all()


def test_what_cannot_be_is_refused(device):
    x, x_scales, w, w_scales, _ = make(MAX_ROWS + 1, 16, 32, device)
    with pytest.raises(ValueError, match="129 rows"):
        skinny_fp8(x, x_scales, w, w_scales, dtype=torch.bfloat16, tuning=Tuning())
    with pytest.raises(ValueError, match="more space"):
        skinny_fp8(x[:1], x_scales[:1], w, w_scales, dtype=torch.bfloat16, tuning=Tuning(split=2))
    assert skinny_fp8(x[:0], x_scales[:0], w, w_scales, dtype=torch.bfloat16, tuning=Tuning()).shape == (0, 16)


def test_every_candidate_fits_its_space():
    space = SplitSpace(torch.device("cpu"), 1 << 22)
    from octavo.kernels.triton.skinny_fp8 import fits

    for rows in (1, 16, 17, 64, 65, 128, 129, 1024):
        for shape in ((4096, 14336), (8192, 8192), (28672, 4096), (40, 33)):
            ways = tuned_fp8.candidates(rows, *shape)
            assert ways[:2] == ["row-wise", "tensor-wise"]
            assert all(fits(space, rows, shape[0], way) for way in ways[2:])
            assert len(ways) == 2 or (rows <= 128 and shape[0] % 64 == 0)


def test_the_next_larger_number_of_rows_decides(monkeypatch):
    stored = tuned_fp8.Stored(torch.zeros(64, 256).to(torch.float8_e4m3fn), torch.ones(64), torch.bfloat16)
    monkeypatch.setattr(tuned_fp8, "_chosen", {(64, 256): ([1, 16, 64], ["row-wise", "tensor-wise", "row-wise"])})
    found = [tuned_fp8.choice(rows, stored) for rows in (1, 2, 16, 17, 64, 65)]
    assert found == ["row-wise", "tensor-wise", "tensor-wise", "row-wise", "row-wise", None]
    assert tuned_fp8.choice(1, stored._replace(weight=stored.weight[:32])) is None
    with tuned_fp8.fp8_matrices_seen() as seen:
        tuned_fp8.choice(5, stored)
    assert seen == {(64, 256): [stored]}
    assert list(tuned_fp8.chosen()) == ["1x64x256", "16x64x256", "64x64x256"]


def test_without_timings_few_rows_take_our_kernel():
    assert isinstance(fp8.usual_way(16, 4096, 4096), Tuning)
    assert fp8.usual_way(16, 28672, 4096).split == 1 < fp8.usual_way(16, 4096, 4096).split
    assert fp8.usual_way(17, 4096, 4096) == fp8.usual_way(1, 40, 33) == "row-wise"
