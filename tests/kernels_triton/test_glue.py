"""The elementwise kernels against float64: odd sizes, strided rows, fp8 outputs, nothing written outside."""

from __future__ import annotations

import math

import pytest
import torch
from attention_reference import relative_error

from octavo.kernels.triton.copy_pages import PageCopier
from octavo.kernels.triton.embedding import embedding
from octavo.kernels.triton.rms_norm import add_rms_norm, rms_norm, rms_norm_fp8
from octavo.kernels.triton.rope_and_cache import rope_and_cache
from octavo.kernels.triton.silu_and_mul import silu_and_mul, silu_and_mul_fp8
from octavo.kernels.triton.swap_pages import PageSwapper

BF16 = 4e-3
E4M3 = 4e-2


def randn(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def norm64(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.cpu().double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.cpu().double()


@pytest.mark.parametrize("size", [1, 96, 576, 1000])
def test_rms_norm(size, device):
    wide = (randn(5, size + 8) * 3).to(device)
    x, weight = wide[:, :size], randn(size, seed=1).to(device)
    assert relative_error(rms_norm(x, weight, 1e-5), norm64(x, weight, 1e-5)) < BF16


def test_add_rms_norm_updates_the_residual(device):
    x, residual, weight = randn(3, 576).to(device), randn(3, 576, seed=1).to(device), randn(576, seed=2).to(device)
    total = x + residual
    out, new = add_rms_norm(x, residual, weight, 1e-6)
    assert new is residual
    assert torch.equal(residual, total)
    assert relative_error(out, norm64(total, weight, 1e-6)) < BF16


def test_rms_norm_in_float32(device):
    x, weight = randn(2, 64, dtype=torch.float32).to(device), randn(64, dtype=torch.float32, seed=1).to(device)
    assert relative_error(rms_norm(x, weight, 1e-6), norm64(x, weight, 1e-6)) < 1e-6


def test_fp8_outputs_use_the_whole_range(device):
    x, weight = randn(4, 200).to(device), randn(200, seed=1).to(device)
    x[2] = 0
    out, scales = rms_norm_fp8(x, None, weight, 1e-6)
    assert relative_error(out.float().cpu() * scales.cpu(), norm64(x, weight, 1e-6)) < E4M3
    assert (out.float().abs().amax(1).cpu() == torch.tensor([448.0, 448.0, 0.0, 448.0])).all()


@pytest.mark.parametrize("size", [1100, 5000])
def test_silu_and_mul(size, device):
    x = randn(3, 2 * size).to(device) * 4
    wide = x.cpu().double()
    expected = torch.nn.functional.silu(wide[:, :size]) * wide[:, size:]
    assert relative_error(silu_and_mul(x), expected) < BF16
    out, scales = silu_and_mul_fp8(x)
    assert relative_error(out.float().cpu() * scales.cpu(), expected) < E4M3


@pytest.mark.parametrize("size", [1100, 5000])
def test_silu_and_mul_of_pairs_is_that_of_halves(size, device):
    x = randn(3, 2 * size).to(device)
    pairs = x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1)
    assert torch.equal(silu_and_mul(pairs, pairs=True), silu_and_mul(x))
    for found, expected in zip(silu_and_mul_fp8(pairs, pairs=True), silu_and_mul_fp8(x), strict=True):
        assert torch.equal(found.float(), expected.float())


def test_silu_of_extremes_is_finite(device):
    x = torch.tensor([[-3e4, 3e4, 0.0, 1.0]], device=device).repeat(1, 2)
    assert silu_and_mul(x).tolist() == [[0.0, 9e8, 0.0, pytest.approx(0.731058, rel=1e-5)]]


def rope64(x: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """x [T, heads, dim]."""
    cos, sin = cos_sin.double()[positions][:, None].chunk(2, -1)
    real, imag = x.double().chunk(2, -1)
    return torch.cat([real * cos - imag * sin, imag * cos + real * sin], -1)


@pytest.mark.parametrize("head_dim", [64, 80])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("fp8", [False, True])
def test_rope_and_cache(head_dim, norm, fp8, device):
    heads, kv_heads, tokens, page = 5, 2, 4, 16
    qkv = randn(tokens, (heads + 2 * kv_heads) * head_dim)
    cos_sin = randn(50, head_dim, dtype=torch.float32, seed=1)
    positions, slots = torch.tensor([3, 49, 0, 7]), torch.tensor([35, 0, -1, 79])
    norms = [randn(head_dim, seed=2), randn(head_dim, seed=3)]
    scales = [torch.tensor([0.5, 0.02]), torch.tensor([0.25, 1.0])]
    caches = [
        torch.full((5, kv_heads, page, head_dim), math.nan).to(torch.float8_e4m3fn if fp8 else qkv.dtype)
        for _ in range(2)
    ]
    on = [t.clone().to(device) for t in (qkv, cos_sin, positions, slots, *caches)]
    options = {}
    if norm:
        options = {"q_norm": norms[0].to(device), "k_norm": norms[1].to(device), "eps": 1e-5}
    if fp8:
        options |= {"k_scale": scales[0].to(device), "v_scale": scales[1].to(device)}
    q = rope_and_cache(*on, heads, kv_heads, head_dim, **options)

    assert torch.equal(on[0].cpu(), qkv)
    again = rope_and_cache(*on, heads, kv_heads, head_dim, keep_keys=True, **options)
    assert torch.equal(again, q)
    x = qkv.view(tokens, -1, head_dim)
    kept = on[0].view(tokens, -1, head_dim).cpu()
    assert torch.equal(kept[:, :heads], x[:, :heads]) and torch.equal(
        kept[:, heads + kv_heads :], x[:, heads + kv_heads :]
    )
    queries, keys, values = x[:, :heads].double(), x[:, heads : heads + kv_heads].double(), x[:, heads + kv_heads :]
    if norm:
        queries, keys = norm64(queries, norms[0], 1e-5), norm64(keys, norms[1], 1e-5)
    assert relative_error(q, rope64(queries, cos_sin, positions)) < BF16
    keys, values = rope64(keys, cos_sin, positions), values.double()
    assert relative_error(kept[:, heads : heads + kv_heads], keys) < BF16
    if fp8:  # saturates at the largest e4m3
        keys, values = ((t / s[:, None].double()).clamp(-448, 448) for t, s in zip((keys, values), scales, strict=True))
    live = slots >= 0
    for cache, expected in zip(on[4:], (keys, values), strict=True):
        rows = cache.float().cpu().transpose(1, 2).reshape(-1, kv_heads, head_dim)
        assert relative_error(rows[slots[live]], expected[live]) < (E4M3 if fp8 else BF16)
        rows[slots[live]] = math.nan
        assert rows.isnan().all(), "only the slots of the step are written"


def test_embedding(device):
    weight, ids = randn(100, 700).to(device), torch.tensor([0, 99, 5, 5])
    for kind in (torch.int32, torch.int64):
        assert torch.equal(embedding(ids.to(device, kind), weight).cpu(), weight.cpu()[ids])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_copy_pages_in_every_layer(dtype, device):
    storage = randn(3, 2, 8, 2, 16, 20, dtype=torch.float32).to(dtype).to(device)
    caches = [storage[layer, kind] for layer in range(3) for kind in range(2)]
    expected = storage.view(torch.uint8).clone()
    expected[:, :, 6] = expected[:, :, 1]
    expected[:, :, 0] = expected[:, :, 7]
    PageCopier(caches)(torch.tensor([[1, 6], [7, 0]], dtype=torch.int32, device=device))
    assert torch.equal(storage.view(torch.uint8), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_swap_pages_in_every_layer(dtype, device):
    """To slots of host memory and back into other pages; nothing else is written, on either side."""
    storage = randn(3, 2, 8, 2, 64, 40, dtype=torch.float32).to(dtype).to(device)
    caches = [storage[layer, kind] for layer in range(3) for kind in range(2)]
    swap = PageSwapper(caches)
    assert swap.slot_bytes == 6 * 2 * 64 * 40 * dtype.itemsize
    host = torch.full((4, swap.slot_bytes), 85, dtype=torch.uint8)
    host = host.pin_memory() if device.type == "cuda" else host

    def pairs(*found: tuple[int, int]) -> torch.Tensor:
        return torch.tensor([(page, host[slot].data_ptr()) for page, slot in found], device=device)

    expected = storage.view(torch.uint8).clone()
    swap(pairs((1, 3), (7, 0)), to_host=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
    kept = expected[:, :, [7, 1]].cpu().movedim(2, 0).reshape(2, -1)
    assert torch.equal(host[[0, 3]], kept) and (host[1:3] == 85).all()
    assert torch.equal(storage.view(torch.uint8), expected)
    swap(pairs((6, 3), (1, 0)), to_host=False)
    expected[:, :, [6, 1]] = expected[:, :, [1, 7]]
    assert torch.equal(storage.view(torch.uint8), expected)
