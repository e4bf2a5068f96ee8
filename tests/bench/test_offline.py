"""Throughput and latency, on an engine that is a stopwatch: every request takes what the test says."""

from __future__ import annotations

import json
from types import SimpleNamespace

import msgspec
import pytest

from octavo.bench.offline import latency, throughput
from octavo.bench.workloads import BenchRequest, fixed
from octavo.errors import ConfigError


class Info(msgspec.Struct):
    model: str = "fake"
    vocab_size: int = 1000
    max_model_len: int = 64


class FakeLLM:
    """Records what it is asked and generates the lengths asked for."""

    def __init__(self):
        self.info = Info()
        self.calls = []

    def generate(self, prompts, params, *, cache_salt):
        self.calls.append((prompts, params, cache_salt))
        return [
            SimpleNamespace(
                outputs=[SimpleNamespace(token_ids=[1] * each.max_tokens)],
                num_cached_tokens=2,
                metrics=SimpleNamespace(time_to_first_token=0.25),
            )
            for each in params
        ]


def test_throughput_runs_the_workload_greedy_at_fixed_lengths():
    llm = FakeLLM()
    workload = [BenchRequest([5, 999, 4321], 7), BenchRequest([6], 3)]
    result = throughput(llm, "mine", workload, repeat=2)
    runs = [call for call in llm.calls if call[2].startswith("repeat")]
    assert [prompts for prompts, _, _ in runs] == [[[5, 999, 321], [6]]] * 2
    assert all(each.temperature == 0 and each.ignore_eos for each in runs[0][1])
    assert [each.max_tokens for each in runs[0][1]] == [7, 3]
    assert result["ids_taken_modulo_vocabulary"] is True
    assert (result["input_tokens"], result["output_tokens"], result["cached_tokens"]) == (4, 10, 4)
    assert len(result["runs"]) == 2
    assert result["seconds"] == min(run["seconds"] for run in result["runs"])
    assert result["output_tokens_per_s"] == pytest.approx(10 / result["seconds"])
    assert result["versions"]["octavo"]
    json.dumps(result)


def test_no_repeat_finds_what_another_cached():
    llm = FakeLLM()
    throughput(llm, "mine", fixed(1, 4, 2, vocab_size=100), repeat=3)
    latency(llm, batch_size=1, input_len=4, output_len=2, warm_up=1, iterations=2)
    salts = [salt for _, _, salt in llm.calls]
    assert len(set(salts)) == len(salts)


def test_a_workload_beyond_the_context_is_refused_before_it_runs():
    llm = FakeLLM()
    with pytest.raises(ConfigError, match="65 tokens; the engine serves 64"):
        throughput(llm, "long", [BenchRequest([1] * 60, 5)])
    assert llm.calls == []


def test_latency_times_what_comes_after_the_warm_up():
    llm = FakeLLM()
    result = latency(llm, batch_size=3, input_len=8, output_len=4, warm_up=2, iterations=5)
    assert len(llm.calls) == 7
    assert len(result["raw_seconds"]) == 5
    assert all(len(prompts) == 3 and all(len(prompt) == 8 for prompt in prompts) for prompts, _, _ in llm.calls)
    assert result["ttft_ms"]["p50"] == pytest.approx(250.0)
    assert result["per_token_ms"]["mean"] == pytest.approx(result["latency_s"]["mean"] * 1000 / 4)
