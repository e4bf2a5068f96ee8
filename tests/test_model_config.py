"""Impossible model shapes are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import ModelFileError
from octavo.model_config import ModelConfig

GOOD: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}


def test_derives_what_is_left_out() -> None:
    config = ModelConfig.from_hf({k: v for k, v in GOOD.items() if k != "num_key_value_heads"})
    assert (config.num_key_value_heads, config.head_dim, config.rope.kind) == (4, 16, "default")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 66}, "hidden_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_attention_heads": "4"}, "num_attention_heads"),
        ({"head_dim": 15}, "head_dim"),
        ({"vocab_size": 1.5}, "vocab_size"),
        ({"max_position_embeddings": True}, "max_position_embeddings"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"torch_dtype": "int8"}, "torch_dtype"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_scaling"),
        ({"rope_theta": -1.0}, "rope_theta"),
    ],
)
def test_impossible_values_are_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelFileError, match=named):
        ModelConfig.from_hf({**GOOD, **change})
