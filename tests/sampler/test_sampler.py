"""The sampler against its definition, row by row, alone and in mixed batches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from octavo.kernels import native
from octavo.plan import NewRow
from octavo.request import SamplingParams
from octavo.runner.sampler import Sampler, SamplerState, logprobs_of
from tests.sampler.oracle import choose, kept, processed

VOCABS = [1, 7, 1000, 49152]
FEATURES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.0},
    {"top_k": 1},
    {"top_k": 5, "temperature": 1.5},
    {"top_p": 0.9},
    {"top_p": 0.3, "top_k": 40},
    {"min_p": 0.05},
    {"min_p": 0.01, "top_p": 0.8, "top_k": 20},
    {"top_p": 0.999, "temperature": 2.0},
    {"repetition_penalty": 1.7, "temperature": 0.0},
    {"frequency_penalty": 1.5, "presence_penalty": 0.7},
    {"presence_penalty": -1.0, "repetition_penalty": 0.8, "top_k": 9},
    {"logit_bias": {0: 6.0}},
    {"banned_token_ids": (0,), "allowed_token_ids": (0, 3, 4, 5)},
    {"min_tokens": 5, "temperature": 0.0},
]


def usable(features: dict[str, Any], vocab: int) -> bool:
    return vocab > 6 or not {"banned_token_ids", "min_tokens"} & set(features)


def new_row(row: int, params: SamplingParams, seed: int, prompt: list[int], output: list[int], stops: Any) -> NewRow:
    return NewRow(row, params, seed, len(prompt), np.array(prompt + output, np.int32), stops)


@pytest.fixture(params=["torch", "native"], autouse=True)
def kernels(request: pytest.FixtureRequest) -> Any:
    native.configure(enabled=request.param == "native")
    if request.param == "native" and not native.available():
        pytest.skip(f"no compiled kernels here: {native.reason()}")
    yield
    native.configure(enabled=True)


@pytest.mark.parametrize("vocab", VOCABS)
def test_a_mixed_batch_draws_what_each_row_would_alone(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    cases = [SamplingParams(**features) for features in FEATURES if usable(features, vocab)]
    state = SamplerState(len(cases) + 3, vocab)
    rows, logits, expected = [], [], []
    for i, params in enumerate(cases):
        prompt, output = rng.integers(0, vocab, 5).tolist(), rng.integers(0, vocab, 3).tolist()
        seed, stops = int(rng.integers(0, 2**63)) * 2 + 1, (int(rng.integers(0, vocab)),)
        x = (rng.standard_normal(vocab) * 3).astype(np.float32)
        x[stops[0]] = 40 if params.min_tokens else x[stops[0]]
        rows.append(len(cases) + 2 - i)
        state.set_row(new_row(rows[-1], params, seed, prompt, output, stops))
        logits.append(x)
        expected.append(choose(x, params, seed, prompt, output, stops))
    sampler, positions = Sampler(state), np.full(len(cases), 8, np.int32)
    batch = sampler.sample(torch.from_numpy(np.stack(logits)), np.array(rows, np.int32), positions)
    assert batch.tokens.tolist() == expected
    assert not batch.failed.any() and batch.tokens.dtype == torch.int32


def test_penalties_count_what_the_sampler_drew_itself() -> None:
    params = SamplingParams(temperature=0, frequency_penalty=2.0)
    state = SamplerState(1, 4)
    state.set_row(new_row(0, params, 0, [0], [], ()))
    sampler, x = Sampler(state), np.array([3.0, 2.5, 0.0, 0.0], np.float32)
    drawn: list[int] = []
    for position in range(1, 6):
        out = sampler.sample(torch.from_numpy(x[None]), np.zeros(1, np.int32), np.array([position], np.int32))
        assert int(out.tokens[0]) == choose(x, params, 0, [0], drawn)
        drawn.append(int(out.tokens[0]))
    assert drawn == [0, 1, 0, 1, 2]
    state.set_row(new_row(0, params, 0, [0], drawn[:3], ()))  # as after a preemption
    out = sampler.sample(torch.from_numpy(x[None]), np.zeros(1, np.int32), np.array([4], np.int32))
    assert int(out.tokens[0]) == drawn[3]


@pytest.mark.parametrize("features", [f for f in FEATURES if f.get("temperature", 1.0) > 0 and "min_tokens" not in f])
def test_draws_follow_the_distribution(features: dict[str, Any]) -> None:
    """Chi-square over 1,200 draws of one row with seeds 0 to 1,199 (fixed, so this never flickers)."""
    if native.available() and {"top_k", "top_p", "min_p"} & set(features):
        pytest.skip("filters are the same code with and without compiled kernels")
    vocab, draws, params = 12, 1200, SamplingParams(**features)
    x = np.random.default_rng(3).standard_normal(vocab).astype(np.float32) * 1.5
    state = SamplerState(1, vocab)
    sampler, counts = Sampler(state), np.zeros(vocab)
    for seed in range(draws):
        state.set_row(new_row(0, params, seed, [1, 2], [3], ()))
        out = sampler.sample(torch.from_numpy(x[None]), np.zeros(1, np.int32), np.array([3], np.int32))
        counts[int(out.tokens[0])] += 1
    y = processed(x, params, [1, 2], [3], ()) / params.temperature
    ids = kept(y, params)
    p = np.exp(y[ids] - y[ids].max())
    expected = draws * p / p.sum()
    assert counts.sum() == counts[ids].sum()
    common = expected > 5
    statistic = ((counts[ids] - expected)[common] ** 2 / expected[common]).sum()
    assert statistic < 2 * common.sum() + 20


def test_a_bad_row_is_reported_and_disturbs_nobody() -> None:
    vocab = 50
    state = SamplerState(5, vocab)
    for row in range(5):
        state.set_row(new_row(row, SamplingParams(top_k=5, logprobs=2), row, [1], [], ()))
    x = torch.randn(5, vocab, generator=torch.Generator().manual_seed(0))
    rows, positions = np.arange(5, dtype=np.int32), np.ones(5, np.int32)
    good = Sampler(state).sample(x, rows, positions)
    poisoned = x.clone()
    poisoned[1, 7], poisoned[2, 7], poisoned[3] = math.nan, math.inf, -math.inf
    out = Sampler(state).sample(poisoned, rows, positions)
    assert out.failed.tolist() == [False, True, True, True, False]
    assert out.tokens[[0, 4]].tolist() == good.tokens[[0, 4]].tolist()
    assert all(0 <= token < vocab for token in out.tokens.tolist())
    assert out.logprobs is not None and good.logprobs is not None
    np.testing.assert_array_equal(out.logprobs.top_ids[[0, 4]], good.logprobs.top_ids[[0, 4]])


def test_a_row_reused_has_nothing_of_its_last_owner() -> None:
    state = SamplerState(1, 10)
    state.set_row(new_row(0, SamplingParams(temperature=0, banned_token_ids=(4,), logprobs=1), 0, [4], [4], ()))
    state.clear_row(0)
    state.set_row(new_row(0, SamplingParams(temperature=0), 0, [], [], ()))
    x = torch.zeros(1, 10)
    x[0, 4] = 1
    out = Sampler(state).sample(x, np.zeros(1, np.int32), np.ones(1, np.int32))
    assert out.tokens.tolist() == [4] and out.logprobs is None


def test_ties_go_to_the_lowest_id() -> None:
    state = SamplerState(2, 6)
    state.set_row(new_row(0, SamplingParams(temperature=0), 0, [], [], ()))
    state.set_row(new_row(1, SamplingParams(top_k=1), 0, [], [], ()))
    x = torch.tensor([[0.0, 2, 2, 2, 1, 2]]).repeat(2, 1)
    assert Sampler(state).sample(x, np.arange(2, dtype=np.int32), np.ones(2, np.int32)).tokens.tolist() == [1, 1]


@pytest.mark.parametrize("k", [0, 3, 40])
def test_logprobs_are_of_the_raw_logits_in_bounded_memory(k: int) -> None:
    x = torch.randn(9, 40, generator=torch.Generator().manual_seed(1)) * 4
    targets = torch.arange(9) * 4
    asked: list[slice] = []

    def logits(part: slice) -> torch.Tensor:
        asked.append(part)
        return x[part]

    out = logprobs_of(logits, targets, k)
    oracle = x.double().log_softmax(1)
    np.testing.assert_allclose(out.chosen, oracle[torch.arange(9), targets], atol=1e-5)
    assert out.ranks.tolist() == [int((row > row[t]).sum()) + 1 for row, t in zip(oracle, targets, strict=True)]
    best = oracle.sort(dim=1, descending=True)
    assert out.top_ids.shape == (9, k) and (out.top_ids == best.indices[:, :k].numpy()).all()
    np.testing.assert_allclose(out.top_logprobs, best.values[:, :k], atol=1e-5)
    assert asked[0] == slice(0, 1) and asked[-1].stop == 9
    huge = logprobs_of(lambda part: torch.zeros(part.stop - part.start, 1 << 20), torch.zeros(40, dtype=torch.int64), 0)
    np.testing.assert_allclose(huge.chosen, -math.log(1 << 20), atol=1e-4)


def test_logprobs_reach_only_the_rows_that_asked() -> None:
    state = SamplerState(3, 8)
    for row, count in enumerate([None, 2, 0]):
        state.set_row(new_row(row, SamplingParams(temperature=0, logprobs=count), 0, [], [], ()))
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    out = Sampler(state).sample(x, np.arange(3, dtype=np.int32), np.ones(3, np.int32)).logprobs
    assert out is not None
    oracle = x.log_softmax(1)
    np.testing.assert_allclose(out.chosen[1:], oracle.max(1).values[1:], atol=1e-6)
    assert out.ranks.tolist() == [0, 1, 1] and out.top_ids[1].tolist() == oracle[1].topk(2).indices.tolist()
