"""Drawing on the device: the same tokens as the CPU's sampler defines, over every filter and penalty."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from octavo.kernels.sampling.draw import draw
from octavo.kernels.sampling.philox import gumbel_noise as reference_noise
from octavo.kernels.triton.gumbel import negative_log
from octavo.kernels.triton.process_logits import SamplingTables, process_logits
from octavo.kernels.triton.sample import Sampler

VOCAB = 5003


@triton.jit
def noise_kernel(words, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, negative_log(tl.load(words + i).to(tl.uint32, bitcast=True)))


def sample(logits: torch.Tensor, rows: list[dict[str, Any]], device: torch.device, position: int = 7):
    """Draw one token for each of `rows`' parameters; returns the outputs on the CPU, and the tables."""
    count = len(rows)
    tables = SamplingTables.empty(count + 2, VOCAB, torch.device("cpu"))
    at = torch.arange(count, dtype=torch.int32) + 2  # rows 0 and 1 stay unused
    for i, row in zip(at.tolist(), rows, strict=True):
        names = ("temperature", "top_p", "min_p", "repetition", "frequency", "presence")
        defaults = (1.0, 1.0, 0.0, 1.0, 0.0, 0.0)
        tables.floats[i, :6] = torch.tensor([row.get(n, d) for n, d in zip(names, defaults, strict=True)])
        tables.ints[i, :6] = torch.tensor([
            row.get("top_k", 0), row.get("num_prompt", 0), row.get("min_tokens", 0), len(row.get("bias", {})),
            len(row.get("stop", ())), row.get("flags", 4),
        ])  # fmt: skip
        tables.seeds[i] = row.get("seed", 1)
        for j, (token, value) in enumerate(row.get("bias", {}).items()):
            tables.bias_ids[i, j], tables.bias_values[i, j] = token, value
        for j, token in enumerate(row.get("stop", ())):
            tables.stop_ids[i, j] = token
        tables.mask[i] = pack(row.get("allowed", ()))
        tables.in_prompt[i] = pack(row.get("prompt", ()))
        for token in row.get("output", ()):
            tables.counts[i, token] += 1
    tables = SamplingTables(*(getattr(tables, name).to(device) for name in SamplingTables.__slots__))
    sampler = Sampler(count, VOCAB, device)
    sampler.processed.fill_(math.nan)
    out = {
        "tokens": torch.full((count,), -1, dtype=torch.int32, device=device),
        "logprobs": torch.full((count,), math.nan, device=device),
        "ranks": torch.zeros(count, dtype=torch.int32, device=device),
        "failed": torch.full((count,), 9, dtype=torch.int8, device=device),
        "last_token": torch.full((count + 2,), -1, dtype=torch.int32, device=device),
    }
    positions = torch.full((count,), position, dtype=torch.int32, device=device)
    logits, at = logits.to(device), at.to(device)
    process_logits(logits, at, positions, tables, sampler.processed)
    sampler(logits, at, positions, tables, **out)
    assert torch.equal(out["last_token"][2:], out["tokens"])
    return {name: tensor.cpu() for name, tensor in out.items()} | {"processed": sampler.processed.cpu()}, tables


def pack(tokens) -> torch.Tensor:
    words = np.zeros(-(-VOCAB // 32), np.uint32)
    for token in tokens:
        words[token // 32] |= np.uint32(1 << (token % 32))
    return torch.from_numpy(words.view(np.int32))


def random_logits(count: int, scale: float = 3.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(count, VOCAB, generator=torch.Generator().manual_seed(3)) * scale).to(dtype)


def test_greedy_logprobs_and_ranks(device):
    logits = random_logits(3, dtype=torch.bfloat16)
    logits[1, [40, 4999]] = 50.0  # a tie goes to the lower id
    out, _ = sample(logits, [{"temperature": 0.0}] * 3, device)
    wide = logits.double()
    assert out["tokens"].tolist() == [int(wide[0].argmax()), 40, int(wide[2].argmax())]
    expected = wide.log_softmax(1).gather(1, out["tokens"].long()[:, None])[:, 0]
    assert (out["logprobs"] - expected).abs().max() < 1e-5
    assert out["ranks"].tolist() == [1, 1, 1]
    assert out["failed"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_draws_are_those_of_the_cpu(dtype, device):
    """The same noise by (seed, position, token), up to float32: no near-tie is hit by these seeds."""
    seeds = [0, 5, -1, 2**62 + 12345, 77]
    logits = random_logits(len(seeds), dtype=dtype)
    out, _ = sample(logits, [{"seed": seed, "temperature": 0.7} for seed in seeds], device, position=100)
    for i, seed in enumerate(seeds):
        noise = reference_noise(seed, 100, np.arange(VOCAB))
        expected = int(np.argmax(logits[i].double().numpy() / np.float64(np.float32(0.7)) + noise))
        assert out["tokens"][i] == expected
        assert out["ranks"][i] == 1 + int((logits[i] > logits[i, expected]).sum())


FILTERS = [
    {"top_k": 1}, {"top_k": 50}, {"top_p": 0.9}, {"top_p": 0.3}, {"min_p": 0.05}, {"top_k": 5000, "top_p": 0.99},
    {"top_k": 40, "top_p": 0.8}, {"min_p": 0.01, "top_k": 20, "top_p": 0.5}, {"top_p": 1e-9}, {"top_k": VOCAB + 9},
]  # fmt: skip


@pytest.mark.parametrize("quantum", [0.0, 0.5])
def test_filters_keep_what_the_cpu_keeps(quantum, device):
    """Many seeds each; logits rounded to halves have ties at every border."""
    logits = random_logits(1, scale=2.0)
    if quantum:
        logits = (logits / quantum).round() * quantum
    rows = [
        f | {"seed": seed, "temperature": 1.25} for f in FILTERS for seed in range(20 if device.type == "cuda" else 1)
    ]
    out, _ = sample(logits.expand(len(rows), -1), rows, device)
    for i, row in enumerate(rows):
        filters = row.get("top_k", 0), row.get("top_p", 1.0), row.get("min_p", 0.0)
        expected = draw(logits[0], row["temperature"], *filters, row["seed"], 7)
        assert out["tokens"][i] == expected, row


def test_masks_bias_and_penalties(device):
    logits = random_logits(4)
    rows = [
        {"temperature": 0.0, "flags": 1, "allowed": [3, 77, 5002]},
        {
            "temperature": 0.0,
            "bias": {9: 100.0, 10: -5.0},
            "min_tokens": 3,
            "num_prompt": 5,
            "stop": (9, 10),
            "flags": 0,
        },
        {"temperature": 0.0, "flags": 2, "repetition": 1.5, "prompt": [1, 2, 3], "output": [3, 4, 4]},
        {"temperature": 0.0, "flags": 6, "frequency": 0.3, "presence": 0.2, "prompt": [1], "output": [4, 4, 5]},
    ]
    out, tables = sample(logits, rows, device)
    expected = logits.clone()
    expected[0] = -math.inf
    expected[0, [3, 77, 5002]] = logits[0, [3, 77, 5002]]
    expected[1, [9, 10]] = -math.inf
    seen = torch.tensor([1, 2, 3, 4])
    expected[2, seen] = torch.where(logits[2, seen] > 0, logits[2, seen] / 1.5, logits[2, seen] * 1.5)
    expected[3, 4] -= 0.3 * 2 + 0.2
    expected[3, 5] -= 0.3 + 0.2
    assert torch.allclose(out["processed"], expected, atol=1e-5)
    assert torch.equal(out["tokens"].long(), expected.argmax(1))
    counts = tables.counts.cpu()
    assert counts[4, out["tokens"][2]] == 1 + [3, 4, 4].count(int(out["tokens"][2]))
    assert not counts[2:4].any(), "rows without penalties count nothing"


def test_bias_after_min_tokens_is_over(device):
    out, _ = sample(random_logits(1), [{"temperature": 0.0, "bias": {9: 100.0}, "min_tokens": 2, "num_prompt": 5,
                                        "stop": (9,), "flags": 0}], device)  # fmt: skip
    assert out["tokens"].tolist() == [9]


def test_logits_that_are_not_finite_fail_their_row_alone(device):
    logits = random_logits(4)
    logits[0, 5000] = math.nan
    logits[1, 17] = math.inf
    logits[2] = -math.inf
    out, _ = sample(logits, [{"top_p": 0.9}, {}, {"top_k": 3}, {"temperature": 0.0}], device)
    assert out["failed"].tolist() == [1, 1, 1, 0]
    assert out["tokens"][3] == int(logits[3].argmax())


def test_noise_is_accurate_at_both_ends(device):
    """-log(u) where u is nearest to 0 and to 1, where float32 cannot hold it."""
    edges = [0, 1, 2, 1000, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2**9, 2**32 - 3, 2**32 - 1]
    words = np.resize(np.array(edges, np.uint32), 16)
    out = torch.zeros(16, device=device)
    noise_kernel[(1,)](torch.from_numpy(words.view(np.int32)).to(device), out, N=16)
    expected = -np.log((words.astype(np.longdouble) + 0.5) / np.longdouble(2**32))
    assert np.max(np.abs(out.cpu().numpy() / expected.astype(np.float64) - 1)) < 3e-6
