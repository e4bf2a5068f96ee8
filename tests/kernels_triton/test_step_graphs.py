"""Which captured size a step is padded to; the tiles that its graph reads."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from octavo.plan import PoolingPlan, PromptLogprobsPlan, StepPlan
from octavo.runner.step_graphs import MOST_TOKENS, Captured, ExtendTiles, Size, StepGraphs

PER_TILE = 32


def step(query_lens: list[int], context: int = 0, sampling: int | None = None) -> StepPlan:
    lengths = np.array(query_lens, np.int32)
    rows = np.arange(len(lengths), dtype=np.int32)
    every = np.ones(len(lengths), np.bool_)
    contexts = np.full_like(lengths, context)
    sample = rows < (len(rows) if sampling is None else sampling)
    return StepPlan(0, rows, lengths, contexts, sample, every, np.zeros(int(lengths.sum()), np.int32))


def graphs(seqs: int = 256, tokens: int = 8192, *, every_row: bool = False, few_pairs: bool = True) -> StepGraphs:
    tiles = ExtendTiles(seqs, PER_TILE, every_row, torch.device("cpu"))
    made = StepGraphs(seqs, tokens, sharing=True, few_pairs=few_pairs, tiles=tiles)
    for size in made.sizes():
        anything: Any = None
        made.add(Captured(size, anything, torch.empty(0)))
    return made


def found(made: StepGraphs, plan: StepPlan, shared: bool = False) -> Size | None:
    captured = made.find(plan, int(plan.sample.sum()), shared)
    return None if captured is None else captured.size


@pytest.mark.parametrize("seqs", [1, 4, 100, 1024])
@pytest.mark.parametrize("tokens", [16, 512, 8192])
def test_sizes_fit_the_buffers_and_come_largest_first(seqs: int, tokens: int) -> None:
    sizes = graphs(seqs, tokens).sizes()
    assert sizes == sorted(set(sizes), reverse=True)
    assert {size.tokens for size in sizes if size.single} >= {1, seqs}
    for size in sizes:
        assert size.samples <= min(size.tokens, seqs)
        assert size.single or size.tokens <= min(tokens, MOST_TOKENS)
        assert not size.single or size.tokens == size.samples


@pytest.mark.parametrize("shared", [False, True])
def test_decode_steps_have_graphs_by_rows(shared: bool) -> None:
    size = found(graphs(), step([1] * 30, context=9), shared)
    assert size is not None and size.single and size.shared == shared and 30 <= size.tokens <= 32


def test_any_other_step_of_few_tokens_has_one_by_tokens_and_samples() -> None:
    assert found(graphs(), step([1] * 70 + [160])) == Size(256, 128, False, False)
    assert found(graphs(), step([1] * 200 + [20])) == Size(256, 256, False, False)
    assert found(graphs(), step([1] * 70 + [160]), shared=True) == Size(256, 256, True, False)
    assert found(graphs(), step([500], sampling=0)) == Size(512, 256, False, False)
    assert found(graphs(1024), step([1] * 500 + [160])) == Size(704, 512, False, False)
    assert found(graphs(1024), step([1] * 600 + [160])) is None
    assert found(graphs(), step([1, 1, 1], sampling=2)) == Size(32, 32, False, False)


def test_what_has_no_graph() -> None:
    made, plan = graphs(), step([1, 1, 100])
    assert found(made, plan) is not None
    assert found(made, step([MOST_TOKENS])) is not None
    assert found(made, step([MOST_TOKENS + 1])) is None
    targets = np.zeros(100, np.int32)
    assert found(made, dataclasses.replace(plan, prompt_logprobs=(PromptLogprobsPlan(2, 1, targets),))) is None
    assert found(made, dataclasses.replace(plan, pooling=(PoolingPlan(2, "mean", True),))) is None
    assert StepGraphs(8, 64, sharing=False, few_pairs=False, tiles=made.tiles).find(plan, 3, False) is None


def test_long_contexts_of_prompts_are_left_to_the_other_kernel_where_there_is_one() -> None:
    plan = step([1, 512], context=6000)
    assert found(graphs(few_pairs=True), plan) is None
    assert found(graphs(few_pairs=False), plan) is not None
    assert found(graphs(few_pairs=True), step([1] * 100 + [12], context=60000)) is not None


def test_a_step_of_many_short_rows_goes_where_their_tiles_find_room() -> None:
    """Sixty rows of two tokens are 120 tokens and 60 tiles; a graph of 128 tokens has 20."""
    size = found(graphs(), step([2] * 60))
    assert size is not None and size.tokens // PER_TILE + size.tokens // 8 >= 60
    assert found(graphs(), step([2] * 250)) is None
    assert found(graphs(every_row=True), step([2] * 250)) is not None


@pytest.mark.parametrize("every_row", [False, True])
def test_tiles_are_those_of_the_rows_and_none_else(every_row: bool) -> None:
    tiles = ExtendTiles(8, PER_TILE, every_row, torch.device("cpu"))
    tiles.send(step([1, 100, 33]), 192, 0)
    tiles.send(step([1, 40, 2]), 64, 1)
    listed = [tuple(tile) for tile in tiles.of(64).tolist()]
    expected = {(1, 0), (1, 1), (2, 0)} | ({(0, 0)} if every_row else set())
    assert set(listed) == expected | {(-1, -1)}
    assert len(listed) == tiles.room(64)
    assert tiles.count(step([1, 40, 2])) == len(expected)
