"""The torch references against float64, and the same numbers from whichever way `octavo.kernels` takes."""

from __future__ import annotations

import math

import pytest
import torch

from octavo.kernels import native
from octavo.kernels.paged_attention import paged_attention
from octavo.kernels.rms_norm import add_rms_norm, rms_norm
from octavo.kernels.rope_and_cache import rope_and_cache
from octavo.kernels.silu_and_mul import silu_and_mul
from tests.kernels.test_native import attend


@pytest.fixture(params=["torch", "compiled"], autouse=True)
def way(request):
    native.configure(enabled=request.param == "compiled", threads=2)
    if request.param == "compiled" and not native.available():
        pytest.skip(native.reason())
    yield request.param
    native.configure()


def close(found, wanted, dtype):
    assert found.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float64: 1e-12}[dtype]
    assert torch.allclose(found.double(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 8), (5, 576), (70, 33)])
def test_rms_norm(generator, dtype, shape):
    x, residual = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    weight = torch.randn(shape[1], generator=generator).to(dtype)

    def wanted(x):
        return x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight.double()

    close(rms_norm(x, weight, 1e-5), wanted(x.double()), dtype)
    total = x.double() + residual.double()
    normed, added = add_rms_norm(x, residual, weight, 1e-5)
    close(added, total, dtype)
    close(normed, wanted(total), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 2), (3, 14), (70, 66)])
def test_silu_and_mul(generator, dtype, shape):
    x = torch.randn(shape, generator=generator).to(dtype)
    gate, up = x.double().chunk(2, dim=1)
    close(silu_and_mul(x), gate * torch.sigmoid(gate) * up, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(9, 3, 64), (1, 1, 16), (4, 2, 80)])
def test_a_cached_prompt_is_attended(generator, dtype, heads, kv_heads, head_dim):
    """Rotation, the write to scattered pages, and attention to them, as a layer does it; in two steps."""
    length, first, page, scale = 23, 14, 4, 0.2
    qkv = torch.randn(length, (heads + 2 * kv_heads) * head_dim, generator=generator).to(dtype)
    angles = torch.rand(length, head_dim // 2, generator=generator) * 6
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1)
    table = torch.tensor([[7, 2, 5, 0, 8, 1, 0, 0]], dtype=torch.int32)
    caches = [torch.full((9, kv_heads, page, head_dim), math.nan, dtype=dtype) for _ in range(2)]
    parts = []
    for begin, end in ((0, first), (first, length)):
        places = torch.arange(begin, end)
        slots = table[0, places // page].long() * page + places % page
        q = rope_and_cache(qkv[begin:end].clone(), cos_sin, places.int(), slots, *caches, heads, kv_heads, head_dim)
        starts, lens = torch.tensor([0, end - begin], dtype=torch.int32), torch.tensor([end], dtype=torch.int32)
        parts.append(paged_attention(q.contiguous(), *caches, table, starts, lens, scale))
    every = qkv.double().view(length, -1, head_dim)
    one, two = every[:, : heads + kv_heads].chunk(2, dim=2)
    cos, sin = cos_sin.double()[:, None].chunk(2, dim=2)
    turned = torch.cat([one * cos - two * sin, two * cos + one * sin], dim=2)
    keys, values = turned[:, heads:].transpose(0, 1), every[:, heads + kv_heads :].transpose(0, 1)
    wanted = attend(turned[:, :heads], keys, values, scale)
    found = torch.cat(parts)
    assert found.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 6e-2
    assert torch.allclose(found.double(), wanted, rtol=tolerance, atol=tolerance)


def test_views_that_the_compiled_kernels_cannot_read_are_computed_all_the_same(generator):
    wide = torch.randn(6, 64, generator=generator)
    x, weight = wide[:, ::2], torch.rand(32, generator=generator)
    assert not native.usable(x)
    assert torch.allclose(rms_norm(x, weight, 1e-5), rms_norm(x.clone(), weight, 1e-5), rtol=1e-5, atol=1e-6)
    assert torch.allclose(silu_and_mul(x), silu_and_mul(x.clone()), rtol=1e-5, atol=1e-6)
