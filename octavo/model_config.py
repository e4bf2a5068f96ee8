"""A model's shape, read once from Hugging Face's config.json keys (GGUF metadata is translated to them)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from octavo.errors import ModelFileError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding: base, and how its frequencies are stretched.

    `kind` is one of default, linear, dynamic, llama3, yarn; `options` are config.json's `rope_scaling` keys.
    """

    theta: float = 10000.0
    kind: str = "default"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The dimensions that layers are built from. Names are Hugging Face's."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    dtype: torch.dtype

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Raises ModelFileError, naming the key, for a missing or impossible value."""
        architectures = config.get("architectures") or []
        heads = _positive(config, "num_attention_heads")
        hidden = _positive(config, "hidden_size")
        kv_heads = _positive(config, "num_key_value_heads", heads)
        if heads % kv_heads:
            raise _impossible("num_key_value_heads", kv_heads, f"must divide num_attention_heads, which is {heads}")
        head_dim = config.get("head_dim")
        if head_dim is None and hidden % heads:
            raise _impossible("hidden_size", hidden, f"must be a multiple of num_attention_heads, which is {heads}")
        head_dim = _positive(config, "head_dim", hidden // heads)
        if head_dim % 2:
            raise _impossible("head_dim", head_dim, "must be even, for rotary embedding")
        activation = config.get("hidden_act", "silu")
        if activation != "silu":
            raise _impossible("hidden_act", activation, "this architecture is served with silu only")
        dtype_name = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
        if dtype_name not in _DTYPES:
            raise _impossible("torch_dtype", dtype_name, f"must be one of {', '.join(_DTYPES)}")
        return cls(
            architecture=str(architectures[0]) if architectures else str(config.get("model_type", "unknown")),
            hidden_size=hidden,
            intermediate_size=_positive(config, "intermediate_size"),
            num_hidden_layers=_positive(config, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=_positive(config, "vocab_size"),
            max_position_embeddings=_positive(config, "max_position_embeddings"),
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope=_rope(config),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            attention_bias=bool(config.get("attention_bias", False)),
            mlp_bias=bool(config.get("mlp_bias", False)),
            dtype=_DTYPES[dtype_name],
        )


def _rope(config: Mapping[str, Any]) -> RopeConfig:
    """transformers 5 nests everything in `rope_parameters`; earlier files have `rope_theta` and `rope_scaling`."""
    options = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = options.pop("rope_theta", None) or config.get("rope_theta") or 10000.0
    kind = str(options.pop("rope_type", None) or options.pop("type", None) or "default")
    options.pop("type", None)
    if kind not in ("default", "linear", "dynamic", "llama3", "yarn"):
        raise _impossible("rope_scaling", kind, "is not a rope type this version knows")
    if not isinstance(theta, int | float) or not theta > 0:
        raise _impossible("rope_theta", theta, "must be a positive number")
    return RopeConfig(float(theta), kind, options)


def _positive(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ModelFileError(f"config.json has no {key!r}.", fix="Download the model again, or complete the file.")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _impossible(key, value, "must be a positive whole number")
    return value


def _impossible(key: str, value: object, why: str) -> ModelFileError:
    return ModelFileError(f"config.json says {key} = {value!r}, which {why}.", fix="Correct the file.", param=key)
