"""Replayed decode steps give what eager ones give, to the last bit, while rows come, go and grow."""

from __future__ import annotations

import logging

import pytest

from octavo import LLM, SamplingParams
from octavo.kernels import native
from octavo.runner import graphs
from tests.tiny_models import make_tiny_llama

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
OPTIONS = {"skip_tokenizer_init": True, "max_num_seqs": 8, "num_gpu_blocks_override": 64, "device": "cpu"}


@pytest.fixture(autouse=True)
def compiled():
    native.configure()
    if not native.available():
        pytest.skip(native.reason())


def generate(folder, **options):
    prompts = [[(7 * i + j) % 90 + 3 for j in range(3 + 5 * i)] for i in range(12)]
    params = [
        SamplingParams(temperature=0.9 * (i % 2), seed=i, max_tokens=4 + 3 * i, ignore_eos=True, logprobs=2)
        for i in range(12)
    ]
    with LLM(str(folder), **OPTIONS, **options) as llm:
        results = llm.generate(prompts, params, use_tqdm=False)
    return [(out.token_ids, [entry.logprob for entry in out.logprobs]) for r in results for out in r.outputs]


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_replay_is_eager_bitwise(tmp_path, quantization, monkeypatch):
    folder = make_tiny_llama(tmp_path / "model", tokenizer=False, **SHAPE)
    replays = []
    run = graphs.Recordings.run

    def counted(self, plan):
        out = run(self, plan)
        replays.append(out is not None)
        return out

    monkeypatch.setattr(graphs.Recordings, "run", counted)
    recorded = generate(folder, quantization=quantization)
    if quantization != "none":
        assert sum(replays) > 20  # most steps were decodes
    assert recorded == generate(folder, quantization=quantization, enforce_eager=True)


def test_what_cannot_be_recorded_runs_eagerly_and_says_so(tmp_path, caplog):
    folder = make_tiny_llama(tmp_path / "model", tokenizer=False, **SHAPE)
    with caplog.at_level(logging.INFO, "octavo.runner.graphs"):
        generate(folder, quantization="none")  # plain products are torch's
    told = [record.message for record in caplog.records if "not recorded" in record.message]
    assert len(told) == 1
    assert "linear" in told[0] or "mm" in told[0] or "t " in told[0]
