"""4-bit blocks: packing loses nothing, products are right in every batch, GGUF's blocks stay what they are."""

from __future__ import annotations

import pytest
import torch

from octavo.errors import ConfigError
from octavo.kernels import native
from octavo.quant.int4 import Int4, dequantize, pack, quantize_blocks, unpack
from octavo.weights.gguf import GGUFFile
from octavo.weights.gguf_arch import GGUFSource, hf_config

SHAPES = [(8, 32), (20, 64), (37, 1536), (576, 576), (5, 4128)]


@pytest.fixture(params=["avx2", "avx2-2", "plain-2", "torch"])
def variant(request):
    kind, _, threads = request.param.partition("-")
    if kind == "torch":
        native.configure(enabled=False)
    else:
        native.configure(avx2=kind == "avx2", threads=int(threads or 1))
        if not native.available():
            pytest.skip(native.reason())
    yield request.param
    native.configure()


def params_of(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    blocks = quantize_blocks(torch.randn(rows, columns, generator=generator))
    bias = torch.randn(rows, generator=generator)
    return blocks, Int4().make_from_blocks(blocks, bias)


@pytest.mark.parametrize("shape", SHAPES)
def test_packing_loses_nothing(shape):
    blocks, params = params_of(*shape)
    assert all(torch.equal(a, b) for a, b in zip(unpack(params.packed, shape[0]), blocks, strict=True))
    assert params.packed.shape == (-(-shape[0] // 8), shape[1] // 32, 160)


@pytest.mark.parametrize("shape", SHAPES)
def test_products_in_every_batch(shape, variant):
    rows, columns = shape
    blocks, params = params_of(rows, columns)
    weight = dequantize(blocks).double()
    x = torch.randn(70, columns, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([Int4().apply(x[i : i + 1].contiguous(), params) for i in range(len(x))])
    scale = x.double().view(70, -1, 32).abs().amax(dim=2, keepdim=True) / 127
    q = (x.double().view(70, -1, 32) / scale).round()
    wanted = (q * scale).view(70, -1) @ weight.T + params.bias.double()
    # An activation that lies between two steps may be rounded to either: one step times one weight.
    bound = scale.amax() * weight.abs().amax() * 1.01 + 1e-5 * wanted.abs()
    assert ((alone - wanted).abs() <= bound).all()
    assert ((alone - wanted).abs() > 1e-5 * wanted.abs().amax()).double().mean() < 0.05
    for count in (1, 2, 3, 4, 5, 6, 7, 16, 67, 70) if variant != "torch" else ():
        out = Int4().apply(x[:count].contiguous(), params)
        assert torch.equal(out, alone[:count]), count


def test_extremes_do_not_overflow(variant):
    blocks = quantize_blocks(torch.tensor([0.0, 1.0]).repeat(16, 48))
    blocks = blocks._replace(q=torch.full_like(blocks.q, 15))
    x = torch.full((3, 96), -2.0)
    wanted = -2.0 * dequantize(blocks).double().sum(dim=1)
    assert torch.allclose(Int4().apply(x, Int4().make_from_blocks(blocks, None)).double(), wanted.expand(3, -1))


def test_a_large_activation_costs_only_its_own_block_its_digits(variant):
    blocks, params = params_of(40, 96)
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(4))
    x[:, 40] = 1000.0
    small = x.clone()
    small[:, 32:64] = 0
    found = Int4().apply(x, params) - Int4().apply(x - small, params)
    exact = small.double() @ dequantize(blocks).double().T
    assert (found - exact).norm() < 0.01 * exact.norm()


def test_what_is_not_finite_stays_in_its_row(variant):
    _, params = params_of(40, 96)
    x = torch.randn(6, 96, generator=torch.Generator().manual_seed(5))
    wanted = Int4().apply(x, params)
    x[1, 70], x[4, 3] = float("nan"), float("inf")
    found = Int4().apply(x, params)
    assert found[[1, 4]].isnan().all()
    assert torch.equal(found[[0, 2, 3, 5]], wanted[[0, 2, 3, 5]])


def test_rows(variant):
    blocks, params = params_of(37, 96)
    ids = torch.tensor([0, 36, 7, 8, 8])
    assert torch.allclose(Int4().rows(ids, params), dequantize(blocks)[ids], rtol=1e-6, atol=1e-7)


def test_requantizing_is_within_half_a_step():
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(3))
    blocks = quantize_blocks(weight)
    error = (dequantize(blocks) - weight).abs().view(16, 2, 32)
    assert (error <= 0.51 * blocks.step.float()[:, :, None] + 1e-3).all()
    assert torch.equal(dequantize(quantize_blocks(torch.zeros(8, 32))), torch.zeros(8, 32))


def test_odd_input_sizes_are_refused():
    with pytest.raises(ConfigError, match="multiple of 32") as caught:
        Int4().make(torch.randn(8, 40), None, device=torch.device("cpu"), dtype=torch.float32)
    assert "int8" in caught.value.fix


def test_pack_of_rows_that_fill_no_panel():
    blocks, _ = params_of(9, 32)
    packed = pack(blocks)
    assert packed.shape[0] == 2
    assert packed[1, :, 128:].view(torch.float16).count_nonzero() <= 2


@pytest.mark.model
def test_the_files_own_blocks_are_kept(smollm2_gguf):
    file = GGUFFile(smollm2_gguf)
    source = GGUFSource(file, hf_config(file))
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.7.mlp.down_proj.weight"):
        assert torch.equal(dequantize(source.four_bit(name)), source.get(name)), name
    assert source.four_bit("model.embed_tokens.weight") is None  # Q8_0
    source.close()
