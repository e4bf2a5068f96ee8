"""What each scheme makes of a linear layer: right products, biases and rows, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from octavo.errors import ConfigError
from octavo.kernels import native
from octavo.quant import LinearScheme, schemes

NAMES = ["none", "int8", "int4"]
TOLERANCES = {"none": 1e-6, "int8": 0.02, "int4": 0.12}  # of the norm of a product with random weights


@pytest.fixture(params=["avx2", "plain", "torch"])
def variant(request: Any) -> Any:
    if request.param == "torch":
        native.configure(enabled=False)
    else:
        native.configure(avx2=request.param == "avx2", threads=2)
        if not native.available():
            pytest.skip(native.reason())
    yield request.param
    native.configure()


def make(scheme: LinearScheme, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
    return scheme.make(weight, bias, device=torch.device("cpu"), dtype=torch.float32)


def case(rows: int = 50, columns: int = 96, count: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(rows, columns, generator=generator), torch.randn(rows, generator=generator)
    return weight, bias, torch.randn(count, columns, generator=generator)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 9])
def test_products_are_near_the_exact_ones(variant: str, name: str, count: int) -> None:
    weight, bias, x = case(count=count)
    scheme = schemes(name).usual
    exact = x.double() @ weight.double().T
    plain = scheme.apply(x, make(scheme, weight))
    assert plain.dtype == torch.float32 and plain.shape == (count, 50)
    assert (plain - exact).norm() <= TOLERANCES[name] * exact.norm()
    assert torch.allclose(scheme.apply(x, make(scheme, weight, bias)) - bias, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_stored_weights_may_be_of_any_float_type(variant: str, name: str, dtype: torch.dtype) -> None:
    weight, bias, x = case()
    scheme = schemes(name).usual
    found = scheme.apply(x, make(scheme, weight.to(dtype), bias.to(dtype)))
    same = scheme.apply(x, make(scheme, weight.to(dtype).float(), bias.to(dtype).float()))
    assert torch.equal(found, same)


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_of_no_tokens(variant: str, name: str) -> None:
    weight, bias, x = case()
    scheme = schemes(name).usual
    assert scheme.apply(x[:0], make(scheme, weight, bias)).shape == (0, 50)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_rows_of_the_matrix(variant: str, name: str) -> None:
    weight, _, _ = case()
    scheme = schemes(name).usual
    params = make(scheme, weight)
    ids = torch.tensor([49, 0, 7, 7])
    half_step = {"none": 0.0, "int8": 0.51 / 127, "int4": 0.51 / 15 * 2 + 1e-3}[name] * weight.abs().max()
    assert ((scheme.rows(ids, params) - weight[ids]).abs() <= half_step).all()
    every_second = torch.tensor([49, 1, 0, 1, 7, 1, 7, 1])[::2]  # not contiguous
    assert torch.allclose(scheme.rows(every_second, params), scheme.rows(ids, params), rtol=1e-6, atol=1e-7)


def test_compiled_and_reference_make_the_same_int8_weights() -> None:
    native.configure()
    if not native.available():
        pytest.skip(native.reason())
    weight, _, _ = case(rows=37, columns=101)
    weight[3] = 0
    scheme = schemes("int8").usual
    compiled = make(scheme, weight)
    native.configure(enabled=False)
    reference = make(scheme, weight)
    native.configure()
    assert torch.equal(compiled.weight, reference.weight)
    assert torch.allclose(compiled.scale, reference.scale, rtol=1e-6, atol=0)


def test_an_unknown_name_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match="'fp3'") as caught:
        schemes("fp3")
    assert caught.value.param == "quantization"
    assert all(name in caught.value.fix for name in [*NAMES, "gguf"])


def test_gguf_keeps_four_bit_blocks_and_makes_int8_of_the_rest() -> None:
    both = schemes("gguf")
    assert type(both.usual).__name__ == "Int8"
    assert both.for_four_bit is not None and type(both.for_four_bit).__name__ == "Int4"
    assert schemes("int8").for_four_bit is None
