"""GGUF metadata and names in Hugging Face's words, against transformers' own reading of the same files."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.errors import ModelFileError
from octavo.layers.rope import inverse_frequencies
from octavo.model_config import ModelConfig
from octavo.weights.checkpoint import Checkpoint, open_checkpoint
from octavo.weights.gguf_arch import gguf_name
from tests.tiny_models import llama_tensors, make_tiny_gguf, make_tiny_llama
from tests.weights.gguf_writing import rewritten


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_tiny_gguf(tmp_path / "tiny.gguf", quantization="F32")


SHAPES: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": True},
    {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32, "hidden_size": 192},
    {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "rope_theta": 5e5, "rms_norm_eps": 1e-6},
]


@pytest.mark.parametrize("quantization", ["F32", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("shape", SHAPES)
def test_config_and_tensors_equal_transformers(tmp_path: Path, shape: dict[str, Any], quantization: str) -> None:
    from transformers import AutoModelForCausalLM

    path = make_tiny_gguf(tmp_path / "tiny.gguf", quantization=quantization, **shape)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    ours = open_checkpoint(path)
    config = ours.config
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
        assert config[key] == getattr(theirs.config, key), key
    for key in ("vocab_size", "max_position_embeddings", "tie_word_embeddings", "head_dim"):
        assert config[key] == getattr(theirs.config, key), key
    assert config["rms_norm_eps"] == pytest.approx(theirs.config.rms_norm_eps)
    assert config["rope_theta"] == theirs.config.rope_parameters["rope_theta"]
    state = theirs.state_dict()
    if config["tie_word_embeddings"]:
        assert "lm_head.weight" not in ours.weights
        del state["lm_head.weight"]
    assert sorted(ours.weights.names()) == sorted(state)
    for name, expected in state.items():
        assert torch.equal(ours.weights.get(name, tuple(expected.shape)), expected), name


@pytest.mark.model
def test_the_real_config(smollm2_gguf: Path) -> None:
    from transformers import AutoConfig

    theirs = AutoConfig.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    config = ModelConfig.from_hf(open_checkpoint(smollm2_gguf).config)
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
        assert getattr(config, key) == getattr(theirs, key)
    assert (config.vocab_size, config.max_position_embeddings) == (49152, 8192)
    assert (config.tie_word_embeddings, config.attention_bias, config.head_dim) == (True, False, 64)
    assert config.rope.theta == theirs.rope_parameters["rope_theta"] == 100000.0
    assert config.rms_norm_eps == pytest.approx(theirs.rms_norm_eps)


def test_names_go_there_and_back(tiny: Path) -> None:
    weights = open_checkpoint(tiny).weights
    assert sorted(weights.names()) == sorted(llama_tensors({**open_checkpoint(tiny).config}))
    assert gguf_name("model.layers.11.self_attn.o_proj.bias") == "blk.11.attn_output.bias"
    assert gguf_name("something.else") == "something.else"
    assert "something.else" not in weights and "model.layers.2.mlp.up_proj.weight" not in weights


def test_a_tensor_of_an_unknown_name_can_be_asked_for(tiny: Path) -> None:
    rewritten(tiny, tensors={"lonely": ((2,), 0, struct.pack("<2f", 1, 2))})
    assert open_checkpoint(tiny).weights.get("lonely").tolist() == [1, 2]


def test_biases_of_q_and_k_are_reordered_with_their_rows(tiny: Path) -> None:
    q, k = torch.arange(64.0), torch.arange(32.0)
    stored = {
        name: value.view(heads, 2, 8).transpose(1, 2).reshape(-1).numpy().tobytes()  # as llama.cpp interleaves
        for name, value, heads in (("attn_q", q, 4), ("attn_k", k, 2))
    }
    rewritten(
        tiny,
        tensors={f"blk.0.{name}.bias": ((len(data) // 4,), 0, data) for name, data in stored.items()}
        | {"blk.0.attn_v.bias": ((32,), 0, k.numpy().tobytes())},
    )
    checkpoint = open_checkpoint(tiny)
    assert checkpoint.config["attention_bias"] is True
    for name, expected in (("q", q), ("k", k), ("v", k)):
        assert torch.equal(checkpoint.weights.get(f"model.layers.0.self_attn.{name}_proj.bias"), expected)


def test_rows_that_are_not_heads_are_refused(tiny: Path) -> None:
    rewritten(tiny, tensors={"blk.0.attn_q.weight": ((63, 1), 0, bytes(63 * 4))})
    with pytest.raises(ModelFileError, match="63 rows"):
        open_checkpoint(tiny).weights.get("model.layers.0.self_attn.q_proj.weight")
    with pytest.raises(ModelFileError, match=r"has shape \[63, 1\]"):
        open_checkpoint(tiny).weights.get("model.layers.0.self_attn.q_proj.weight", (64, 64))


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"general.architecture": "mamba"}, "'mamba', which is not supported"),
    ({"general.architecture": [1]}, "not supported"),
    ({"general.architecture": None}, "None, which is not supported"),
    ({"split.count": 3}, "one of 3 parts"),
    ({"llama.embedding_length": None}, "has no key llama.embedding_length"),
    ({"llama.embedding_length": "64"}, "llama.embedding_length = '64'"),
    ({"llama.embedding_length": 0}, "llama.embedding_length = 0"),
    ({"llama.embedding_length": True}, "llama.embedding_length = True"),
    ({"llama.embedding_length": 64.0}, "llama.embedding_length = 64.0"),
    ({"llama.block_count": 1 << 40}, "llama.block_count"),
    ({"llama.attention.head_count": [4, 4]}, "llama.attention.head_count"),
    ({"llama.attention.head_count": 0}, "llama.attention.head_count"),
    ({"llama.attention.head_count_kv": ["2"]}, "llama.attention.head_count_kv"),
    ({"llama.attention.key_length": "16"}, "llama.attention.key_length"),
    ({"llama.attention.key_length": 32}, "llama.rope.dimension_count = 16.*heads of 32"),
    ({"llama.attention.key_length": 16, "llama.rope.dimension_count": 8}, "llama.rope.dimension_count = 8"),
    ({"llama.attention.value_length": 8}, "llama.attention.value_length = 8"),
    ({"llama.attention.layer_norm_rms_epsilon": "x"}, "rms_epsilon = 'x'"),
    ({"llama.attention.layer_norm_rms_epsilon": math.nan}, "rms_epsilon = nan"),
    ({"llama.rope.freq_base": math.inf}, "freq_base = inf"),
    ({"llama.rope.freq_base": -1.0}, "freq_base = -1.0"),
    ({"llama.rope.scaling.type": "longrope"}, "'longrope'"),
    ({"llama.rope.scaling.type": [1]}, r"scaling.type = \[1\]"),
    ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": "4"}, "scaling.factor = '4'"),
    ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.0}, "scaling.factor = 0.0"),
    ({"tokenizer.ggml.bos_token_id": [1]}, "bos_token_id"),
    ({"tokenizer.ggml.eos_token_id": 320}, "no id of its 320 tokens"),
]


@pytest.mark.parametrize(("change", "named"), IMPOSSIBLE)
def test_impossible_metadata_is_named(tiny: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelFileError, match=named) as caught:
        open_checkpoint(rewritten(tiny, change))
    assert caught.value.fix and len(str(caught.value)) < 500


def test_a_great_array_where_a_number_belongs_is_not_printed_whole(tiny: Path) -> None:
    with pytest.raises(ModelFileError) as caught:
        open_checkpoint(rewritten(tiny, {"llama.block_count": [7] * 100_000}))
    assert len(str(caught.value)) < 500


def frequencies(checkpoint: Checkpoint) -> torch.Tensor:
    config = ModelConfig.from_hf(checkpoint.config)
    found, _ = inverse_frequencies(config.rope, config.head_dim, 256, config.max_position_embeddings)
    return found


@pytest.mark.parametrize(
    ("change", "scaling"),
    [
        ({}, None),
        ({"type": "none", "factor": 4.0}, None),
        ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 64},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
        (
            {"type": "yarn", "factor": 2.0},
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256},
        ),
    ],
)
def test_rope_scaling_out_of_metadata(tiny: Path, change: dict[str, Any], scaling: dict[str, Any] | None) -> None:
    path = rewritten(tiny, {f"llama.rope.scaling.{key}": value for key, value in change.items()})
    assert open_checkpoint(path).config["rope_scaling"] == scaling


def llama3_factors(theta: float, head_dim: int, factor: float, trained: float) -> list[float]:
    """What each frequency is divided by, case by case as in Meta's own code for Llama 3.1."""
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        if wavelength < trained / 4:
            factors.append(1.0)
        elif wavelength > trained:
            factors.append(factor)
        else:
            smooth = (trained / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


@pytest.mark.parametrize(("factor", "trained"), [(8.0, 8192), (32.0, 8192), (4.0, 512)])
def test_llama3_scaling_out_of_its_tensor(tiny: Path, factor: float, trained: int) -> None:
    factors = llama3_factors(500_000.0, 16, factor, trained)
    keys: dict[str, Any] = {"llama.rope.freq_base": 500_000.0}
    if trained != 8192:
        keys["llama.rope.scaling.original_context_length"] = trained
    path = rewritten(tiny, keys, {"rope_freqs.weight": ((8,), 0, struct.pack("<8f", *factors))})
    checkpoint = open_checkpoint(path)
    assert checkpoint.config["rope_scaling"]["rope_type"] == "llama3"
    plain = 500_000.0 ** -(torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    expected = plain / torch.tensor(factors, dtype=torch.float64)
    torch.testing.assert_close(frequencies(checkpoint), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "factors",
    [[1, 1, 1, 1, 2, 2, 2, 8], [math.nan] * 8, [math.inf] * 8, [0.0] * 8, [-8.0] * 8, [1.0] * 4],
)
def test_factors_that_are_not_llama3s_are_refused(tiny: Path, factors: list[float]) -> None:
    data = struct.pack(f"<{len(factors)}f", *factors)
    with pytest.raises(ModelFileError, match="not Llama 3's"):
        open_checkpoint(rewritten(tiny, {}, {"rope_freqs.weight": ((len(factors),), 0, data)}))


def test_a_gguf_answers_as_the_folder_does(tmp_path: Path) -> None:
    """The whole way: weights, config and tokenizer out of either give the same greedy text."""
    from octavo import LLM, SamplingParams

    shape = {"intermediate_size": 128}
    paths = [
        make_tiny_llama(tmp_path / "folder", **shape),
        make_tiny_gguf(tmp_path / "tiny.gguf", quantization="F32", tokenizer=True, **shape),
    ]
    answers = []
    for path in paths:
        with LLM(str(path), quantization="none", max_model_len=128) as llm:
            results = llm.generate(["hello", "ünï"], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
            answers.append([(result.prompt_token_ids, result.outputs[0].token_ids) for result in results])
    assert answers[0] == answers[1]
    assert len(answers[0][0][1]) == 12
