"""Every compiled CPU kernel against float64, with odd shapes and memory that held something else before."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from octavo.kernels import native
from octavo.kernels.sampling.philox import gumbel_noise
from octavo.quant.int4 import Int4

TYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Results are written into memory full of NaN."""
    monkeypatch.setattr(native, "_empty", lambda *shape: torch.full(shape, math.nan))


@pytest.mark.parametrize("shape", [(1, 8), (3, 7), (5, 576), (70, 33), (2, 4096)])
@pytest.mark.parametrize("add", [False, True])
def test_rms_norm(variant, generator, shape, add):
    x, weight = torch.randn(shape, generator=generator), torch.randn(shape[1], generator=generator)
    residual = torch.randn(shape, generator=generator) if add else None
    total = x.double() + (residual.double() if add else 0)
    y = native.rms_norm(x, residual, weight, 1e-5)
    wanted = total / (total.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert torch.allclose(y.double(), wanted, rtol=2e-6, atol=1e-6)
    if add:
        assert torch.equal(residual.double(), total.float().double())


@pytest.mark.parametrize("shape", [(1, 2), (3, 14), (5, 1152), (70, 66), (40, 3072)])
def test_silu_and_mul(variant, generator, shape):
    x = torch.randn(shape, generator=generator) * 8
    x[0, 0] = -120.0  # exp(120) is more than float32 has
    gate, up = x.double().chunk(2, dim=1)
    wanted = gate * torch.sigmoid(gate) * up
    assert torch.allclose(native.silu_and_mul(x).double(), wanted, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("cache_type", TYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(9, 3, 64), (1, 1, 16), (4, 2, 80)])
def test_rope_and_cache(variant, generator, cache_type, heads, kv_heads, head_dim):
    count, page = 5, 4
    qkv = torch.randn(count, (heads + 2 * kv_heads) * head_dim, generator=generator)
    cos_sin = torch.randn(50, head_dim, generator=generator)
    positions = torch.tensor([0, 49, 7, 7, 3], dtype=torch.int32)
    slots = torch.tensor([11, 0, -1, 5, 4])
    keys, values = (torch.full((3, kv_heads, page, head_dim), math.nan).to(cache_type) for _ in range(2))
    q = native.rope_and_cache(qkv, cos_sin, positions, slots, keys, values, heads, kv_heads, head_dim)
    all_heads = qkv.double().view(count, heads + 2 * kv_heads, head_dim)
    cos, sin = cos_sin.double()[positions.long()][:, None].chunk(2, dim=2)
    first, second = all_heads[:, : heads + kv_heads].chunk(2, dim=2)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=2)
    assert torch.allclose(q.double(), turned[:, :heads], rtol=1e-5, atol=1e-6)
    written = slots >= 0
    at = slots[written]
    assert torch.allclose(
        keys[at // page, :, at % page].double(),
        turned[written, heads:],
        rtol=1e-2,
        atol=1e-2 if cache_type.itemsize == 2 else 1e-5,
    )
    assert torch.equal(
        values[at // page, :, at % page], qkv.view(count, -1, head_dim)[written, heads + kv_heads :].to(cache_type)
    )
    assert keys.isnan().all(dim=3).sum() == kv_heads * (3 * page - int(written.sum()))  # nothing else was touched


def attend(q, keys, values, scale):
    """float64 [n, H, D]; the last query sees all keys [H_kv, L, D]."""
    count, heads, _ = q.shape
    keys, values = (x.double().repeat_interleave(heads // len(x), dim=0) for x in (keys, values))
    scores = torch.einsum("qhd,hkd->hqk", q.double(), keys) * scale
    length = keys.shape[1]
    hidden = torch.arange(length)[None, :] > torch.arange(length - count, length)[:, None]
    return torch.einsum("hqk,hkd->qhd", scores.masked_fill(hidden, -math.inf).softmax(2), values)


@pytest.mark.parametrize("cache_type", TYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(9, 3, 64), (8, 1, 128), (2, 2, 80), (7, 1, 96), (12, 2, 32), (5, 5, 16)]
)
@pytest.mark.parametrize("page", [4, 16])
def test_paged_attention(variant, generator, cache_type, heads, kv_heads, head_dim, page):
    lengths, queries = [1, 5, 37, 300, 150], [1, 1, 9, 1, 150]
    blocks = [-(-length // page) for length in lengths]
    pages = torch.randperm(sum(blocks) + 3, generator=generator)
    caches = [torch.full((len(pages), kv_heads, page, head_dim), math.nan).to(cache_type) for _ in range(2)]
    table = torch.full((len(lengths), max(blocks) + 2), 0, dtype=torch.int32)
    q = torch.randn(sum(queries), heads, head_dim, generator=generator)
    wanted, used, start = [], 0, 0
    for row, (length, count, held) in enumerate(zip(lengths, queries, blocks, strict=True)):
        own = pages[used : used + held]
        used += held
        table[row, :held] = own.int()
        both = []
        for cache in caches:
            data = torch.randn(kv_heads, length, head_dim, generator=generator).to(cache_type)
            for i in range(length):
                cache[own[i // page], :, i % page] = data[:, i]
            both.append(data)
        wanted.append(attend(q[start : start + count], *both, 0.3))
        start += count
    starts = torch.tensor([0, *np.cumsum(queries)], dtype=torch.int32)
    out = native.paged_attention(q, *caches, table, starts, torch.tensor(lengths, dtype=torch.int32), 0.3)
    assert torch.allclose(out.double(), torch.cat(wanted), rtol=1e-4, atol=1e-4)


def test_attention_is_the_same_alone_and_in_any_batch(variant, generator):
    lengths, queries, page = [1, 129, 40, 257, 64], [1, 1, 40, 3, 1], 16
    caches = [torch.randn(40, 3, page, 64, generator=generator).bfloat16() for _ in range(2)]
    table = torch.randperm(40, generator=generator)[: 5 * 8].view(5, 8).repeat(1, 3)[:, :17].int().contiguous()
    starts = [0, *np.cumsum(queries).tolist()]
    q = torch.randn(starts[-1], 9, 64, generator=generator)

    def run(rows):
        parts = torch.cat([q[starts[row] : starts[row + 1]] for row in rows])
        begins = torch.tensor([0, *np.cumsum([queries[row] for row in rows])], dtype=torch.int32)
        lens = torch.tensor([lengths[row] for row in rows], dtype=torch.int32)
        out = native.paged_attention(parts, *caches, table[list(rows)].contiguous(), begins, lens, 0.125)
        return dict(zip(rows, out.split([queries[row] for row in rows]), strict=True))

    alone = {row: run([row])[row] for row in range(5)}
    for rows in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 4], [2, 3], [1, 2]):
        assert all(torch.equal(out, alone[row]) for row, out in run(rows).items()), rows


def test_a_chunk_of_a_prompt_gives_what_the_whole_prompt_gives(variant, generator):
    """The kernels differ (one query, many), and where the tiles begin: equal within rounding."""
    length, page = 150, 16
    caches = [torch.randn(10, 2, page, 64, generator=generator) for _ in range(2)]
    table = torch.arange(10, dtype=torch.int32)[None]
    q = torch.randn(length, 4, 64, generator=generator)
    starts = torch.tensor([0, length], dtype=torch.int32)
    whole = native.paged_attention(q, *caches, table, starts, starts[1:], 0.125)
    for begin, end in ((0, 1), (0, 64), (63, 64), (63, 66), (149, 150), (90, 150)):
        now = torch.tensor([0, end - begin], dtype=torch.int32)
        lens = torch.tensor([end], dtype=torch.int32)
        part = native.paged_attention(q[begin:end].clone(), *caches, table, now, lens, 0.125)
        assert torch.allclose(part, whole[begin:end], rtol=1e-5, atol=1e-5), (begin, end)


def test_nothing_to_do(variant):
    none, ids = torch.empty(0, 64), torch.empty(0, dtype=torch.int64)
    q, scale = native.quantize_weight(torch.ones(8, 64))
    blocks = Int4().make(torch.ones(8, 64), None, device=torch.device("cpu"), dtype=torch.float32).packed
    caches = [torch.full((2, 1, 4, 16), math.nan) for _ in range(2)]
    empty = torch.empty(0, dtype=torch.int32)
    rotated = native.rope_and_cache(none[:, :48], torch.ones(4, 16), empty, ids, *caches, 1, 1, 16)
    attended = native.paged_attention(
        rotated, *caches, empty.view(0, 2), torch.zeros(1, dtype=torch.int32), empty, 0.125
    )
    assert native.rms_norm(none, None, torch.ones(64), 1e-5).shape == (0, 64)
    assert native.silu_and_mul(none).shape == (0, 32)
    assert native.int8_linear(none, q, scale, None).shape == (0, 8)
    assert native.int4_linear(none, blocks, 8, None).shape == (0, 8)
    assert native.int8_rows(ids, q, scale).shape == native.int4_rows(ids, blocks).shape == (0, 64)
    assert rotated.shape == attended.shape == (0, 1, 16)
    assert all(cache.isnan().all() for cache in caches)


@pytest.mark.parametrize(("outputs", "inputs"), [(8, 16), (7, 33), (100, 576), (64, 1536), (1, 5), (33, 4100)])
def test_int8_linear(variant, generator, outputs, inputs):
    weight, bias = torch.randn(outputs, inputs, generator=generator), torch.randn(outputs, generator=generator)
    q, scale = native.quantize_weight(weight)
    assert (q.double() * scale.double()[:, None] - weight.double()).abs().max() <= 0.5001 * scale.max()
    x = torch.randn(70, inputs, generator=generator)
    alone = torch.cat([native.int8_linear(x[i : i + 1].clone(), q, scale, bias) for i in range(len(x))])
    step = x.abs().amax(dim=1, keepdim=True) / 2047
    qx = (x.double() / step.double()).round()
    wanted = (qx @ q.double().T) * step.double() * scale.double() + bias.double()
    # An activation that lies between two steps may be rounded to either: one step times one weight.
    bound = step.double() * (scale.double() * 127) * 1.01 + 1e-5 * wanted.abs() + 1e-6
    assert ((alone - wanted).abs() <= bound).all()
    exact = (x.double() @ weight.double().T) + bias.double()
    assert (alone - exact).norm() / exact.norm() < 0.01  # what a weight's 8 bits cost
    for count in (1, 2, 3, 4, 5, 7, 16, 49, 70):
        assert torch.equal(native.int8_linear(x[:count].clone(), q, scale, bias), alone[:count]), count
        without = native.int8_linear(x[:count].clone(), q, scale, None)
        assert torch.allclose(without + bias, alone[:count], rtol=1e-5, atol=1e-5)


def test_int8_rows_of_zeros_and_extremes(variant):
    q, scale = native.quantize_weight(torch.cat([torch.zeros(4, 48), torch.full((4, 48), -3.0)]))
    x = torch.tensor([[0.0] * 48, [1e-38] * 48, [1e30] * 48])
    y = native.int8_linear(x, q, scale, None)
    assert torch.equal(y[:, :4], torch.zeros(3, 4))
    assert torch.equal(y[0], torch.zeros(8))
    assert torch.allclose(y[2, 4:], torch.full((4,), -48 * 3e30))


@pytest.mark.parametrize("inputs", [33, 64, 4100])
def test_int8_what_is_not_finite_stays_in_its_row(variant, generator, inputs):
    q, scale = native.quantize_weight(torch.randn(40, inputs, generator=generator))
    x = torch.randn(6, inputs, generator=generator)
    wanted = native.int8_linear(x, q, scale, None)
    x[1, 2], x[2, inputs - 1], x[4, 0] = math.nan, math.nan, -math.inf
    found = native.int8_linear(x, q, scale, None)
    assert found[[1, 2, 4]].isnan().all()
    assert torch.equal(found[[0, 3, 5]], wanted[[0, 3, 5]])
    assert native.int8_linear(x[1:2].clone(), q, scale, None).isnan().all()


@pytest.mark.parametrize("inputs", [8260, 8261, 40000])
def test_int8_sums_of_the_largest_numbers_fit(variant, inputs):
    """All activations and weights at their limits; above 8,260 inputs the activations' limit shrinks."""
    q, scale = native.quantize_weight(torch.full((5, inputs), 3.0))
    y = native.int8_linear(torch.full((6, inputs), -2.0), q, scale, None)
    assert torch.allclose(y, torch.full((6, 5), -6.0 * inputs), rtol=1e-5)


def test_int8_rows(variant, generator):
    weight = torch.randn(37, 40, generator=generator)
    q, scale = native.quantize_weight(weight)
    ids = torch.tensor([0, 36, 36, 5])
    assert torch.equal(native.int8_rows(ids, q, scale), q[ids].float() * scale[ids, None])


def test_float_rows(variant, generator):
    weight, ids = torch.randn(37, 41, generator=generator), torch.tensor([0, 36, 36, 5])
    assert torch.equal(native.float_rows(ids, weight), weight[ids])


@pytest.mark.parametrize("size", [1, 3, 31, 1000, 49152])
def test_gumbel_argmax_is_the_reference_draw(variant, generator, size):
    logits = torch.randn(size, generator=generator) * 3
    same = 0
    for position in range(20):
        seed = (position * 0x9E3779B97F4A7C15) & (2**64 - 1)
        noisy = logits.numpy().astype(np.float64) / 0.7 + gumbel_noise(seed, position, np.arange(size))
        token = native.gumbel_argmax(logits, 1 / 0.7, seed, position)
        same += token == int(noisy.argmax())
        assert noisy.max() - noisy[token] < 1e-4  # float32's noise may turn a near tie
    assert same >= 19


@pytest.mark.parametrize("size", [1, 31, 33, 1000, 49152])
@pytest.mark.parametrize("share", [0.9, 0.01])
def test_gumbel_argmax_under_a_mask(variant, generator, size, share):
    logits = torch.randn(size, generator=generator) * 3
    allowed = torch.rand(size, generator=generator).numpy() < share
    allowed[size // 2] = True
    words = np.zeros(-(-size // 32), np.int32)
    words.view(np.uint8)[: -(-size // 8)] = np.packbits(allowed, bitorder="little")
    masked = np.where(allowed, logits.numpy().astype(np.float64), -np.inf)
    assert native.gumbel_argmax(logits, 0.0, 1, 2, words) == int(masked.argmax())
    same = 0
    for position in range(20):
        noisy = masked / 0.7 + gumbel_noise(5, position, np.arange(size))
        token = native.gumbel_argmax(logits, 1 / 0.7, 5, position, words)
        same += token == int(noisy.argmax())
        assert allowed[token] and noisy.max() - noisy[token] < 1e-4
    assert same >= 19


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("inverse", [1e-3, 1.0, 10.0, 1000.0])
def test_blocks_that_cannot_win_are_all_that_is_left_out(variant, scale, inverse):
    """Most blocks are passed over by a bound on their noise; the draw stays that of exact arithmetic."""
    rng = np.random.default_rng(3)
    for trial in range(40):
        logits = torch.from_numpy((rng.standard_normal(int(rng.integers(1, 5000))) * scale).astype(np.float32))
        if trial % 4 == 0:
            logits[1::2] = -np.inf
        seed, position = int(rng.integers(0, 2**63)), int(rng.integers(0, 2**20))
        noisy = logits.numpy().astype(np.float64) * inverse + gumbel_noise(seed, position, np.arange(len(logits)))
        assert native.gumbel_argmax(logits, inverse, seed, position) == int(noisy.argmax())


def test_ties_go_to_the_lower_id(variant):
    assert native.gumbel_argmax(torch.zeros(100), 0.0, 0, 0) == 0
    words = np.array([0, 0b11000, -1, -1], np.int32)
    assert native.gumbel_argmax(torch.zeros(100), 0.0, 0, 0, words) == 35


@pytest.mark.parametrize("size", [1, 7, 8, 1000, 5003, 49152])
@pytest.mark.parametrize("scale", [1e-3, 3.0, 60.0])
def test_logit_scores(variant, generator, size, scale):
    logits = torch.randn(5, size, generator=generator) * scale
    logits[1] -= 500
    targets = torch.randint(size, (5,), generator=generator)
    total, beaten_by = native.logit_scores(logits, targets)
    assert torch.allclose(total.double(), logits.double().logsumexp(1, keepdim=True), rtol=1e-6, atol=1e-6)
    assert torch.equal(beaten_by, (logits > logits.gather(1, targets[:, None])).sum(1))
    assert torch.equal(native.logit_scores(logits[2:3].contiguous(), targets[2:3])[0], total[2:3])


def test_a_library_of_another_version_is_not_used(monkeypatch):
    monkeypatch.setattr(native, "_FORMATS", native._FORMATS | {"from_the_future": "1q"})
    monkeypatch.setattr(native._library, "ops", {})
    native.configure()
    assert not native.available()
    assert "another version" in native.reason()
    monkeypatch.undo()
    native.configure()
