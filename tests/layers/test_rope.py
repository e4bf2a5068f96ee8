"""Rotary frequencies against transformers' own, for every kind of stretching."""

from __future__ import annotations

import pytest
import torch

from octavo.layers.rope import cos_sin_table, inverse_frequencies
from octavo.model_config import ModelConfig

BASE = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 4096,
}

SCALINGS = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
        "rope_theta": 500000.0,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 1024,
        "rope_theta": 10000.0,
    },
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_frequencies_equal_those_of_transformers(kind: str) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    scaling = dict(SCALINGS[kind])
    theirs = LlamaRotaryEmbedding(LlamaConfig(**BASE, rope_parameters=dict(scaling)))
    config = ModelConfig.from_hf({**BASE, "rope_parameters": scaling})
    ours, amplitude = inverse_frequencies(config.rope, config.head_dim, 4096, config.max_position_embeddings)
    torch.testing.assert_close(ours.float(), theirs.inv_freq.float(), rtol=1e-5, atol=1e-9)
    assert amplitude == pytest.approx(theirs.attention_scaling)


def test_older_config_keys_mean_the_same() -> None:
    new = ModelConfig.from_hf({**BASE, "rope_parameters": dict(SCALINGS["llama3"])})
    scaling = {k: v for k, v in SCALINGS["llama3"].items() if k != "rope_theta"}
    old = ModelConfig.from_hf({**BASE, "rope_theta": 500000.0, "rope_scaling": scaling})
    assert new.rope == old.rope


def test_table_holds_cosines_then_sines() -> None:
    config = ModelConfig.from_hf(BASE)
    table = cos_sin_table(config.rope, config.head_dim, 100, config.max_position_embeddings)
    assert table.shape == (100, config.head_dim)
    half = config.head_dim // 2
    angles = 37 * (10000.0 ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim))
    torch.testing.assert_close(table[37, :half].double(), angles.cos(), rtol=0, atol=1e-6)
    torch.testing.assert_close(table[37, half:].double(), angles.sin(), rtol=0, atol=1e-6)
