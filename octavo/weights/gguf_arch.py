"""GGUF's names and keys in Hugging Face's words, one entry an architecture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from octavo.errors import ModelFileError
from octavo.weights.gguf import GGUFFile
from octavo.weights.gguf_dequant import dequantize
from octavo.weights.source import check_shape, missing_tensor

ARCHITECTURES = {"llama": "LlamaForCausalLM"}

_TOP = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
_TOP["lm_head.weight"] = "output.weight"
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER_NAME = re.compile(r"model\.layers\.(\d{1,5})\.([\w.]+)\.(weight|bias)")


def gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` → `blk.3.ffn_up.weight`; a name it has no word for is returned as it is."""
    match = _LAYER_NAME.fullmatch(name)
    if match is None or match[2] not in _LAYER:
        return _TOP.get(name, name)
    return f"blk.{match[1]}.{_LAYER[match[2]]}.{match[3]}"


class GGUFSource:
    """A WeightSource over a GGUF file, dequantizing what is asked for."""

    def __init__(self, file: GGUFFile, config: Mapping[str, Any]):
        self._file = file
        self._heads = {
            "attn_q": int(config["num_attention_heads"]),
            "attn_k": int(config["num_key_value_heads"]),
        }

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        ours = gguf_name(name)
        if ours not in self._file.tensors:
            raise missing_tensor(name, str(self._file.path))
        check_shape(name, self._file.tensors[ours].shape, shape)
        tensor = dequantize(self._file, ours)
        part = ours.split(".")[-2]
        return _half_split(tensor, self._heads[part]) if part in self._heads else tensor

    def names(self) -> list[str]:
        """The Hugging Face names that the file has."""
        layer = {theirs: ours for ours, theirs in _LAYER.items()}
        top = {theirs: ours for ours, theirs in _TOP.items()}
        names = []
        for name in self._file.tensors:
            match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
            known = match is not None and match[2] in layer
            names.append(
                f"model.layers.{match[1]}.{layer[match[2]]}.{match[3]}" if match and known else top.get(name, name)
            )
        return names

    def __contains__(self, name: str) -> bool:
        return gguf_name(name) in self._file.tensors

    def close(self) -> None:
        self._file.close()


def _half_split(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Undo llama.cpp's row order for its interleaved rotation: rows (i, half) of each head become (half, i)."""
    rest = tensor.shape[1:]
    return tensor.view(num_heads, -1, 2, *rest).transpose(1, 2).reshape(tensor.shape)


def hf_config(file: GGUFFile) -> dict[str, Any]:
    """config.json's keys, out of the metadata.

    Raises:
        ModelFileError: the architecture is not supported, or a key is missing.
    """
    data = file.metadata
    arch = data.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise ModelFileError(
            f"{file.path} holds the architecture {arch!r}, which is not supported.",
            fix=f"Supported in GGUF files: {', '.join(ARCHITECTURES)}.",
            code="unsupported_architecture",
        )

    def key(name: str, default: Any = None) -> Any:
        value = data.get(f"{arch}.{name}", default)
        if value is None:
            raise ModelFileError(f"{file.path} has no key {arch}.{name}.", fix="Download the file again.")
        return value

    if "token_embd.weight" not in file.tensors or len(file.tensors["token_embd.weight"].shape) != 2:
        raise missing_tensor("token_embd.weight", str(file.path))
    heads, hidden = key("attention.head_count"), key("embedding_length")
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "hidden_size": hidden,
        "intermediate_size": key("feed_forward_length"),
        "num_hidden_layers": key("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": key("attention.head_count_kv", heads),
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "max_position_embeddings": key("context_length"),
        "rms_norm_eps": key("attention.layer_norm_rms_epsilon"),
        "rope_theta": key("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "torch_dtype": "float32",
        "bos_token_id": data.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": data.get("tokenizer.ggml.eos_token_id"),
    }
    if isinstance(heads, int) and heads > 0:
        config["head_dim"] = data.get(f"{arch}.attention.key_length") or data.get(
            f"{arch}.rope.dimension_count", hidden // heads
        )
    config["rope_scaling"] = _rope_scaling(file, arch)
    return config


def _rope_scaling(file: GGUFFile, arch: str) -> dict[str, Any] | None:
    """Linear and YaRN are metadata. Llama 3's is a tensor of factors, which is recognised by its shape of values."""
    data = file.metadata
    if "rope_freqs.weight" in file.tensors:
        return _llama3_scaling(dequantize(file, "rope_freqs.weight").double(), data, arch)
    kind = data.get(f"{arch}.rope.scaling.type")
    if kind not in ("linear", "yarn"):
        return None
    return {
        "rope_type": kind,
        "factor": data.get(f"{arch}.rope.scaling.factor", 1.0),
        "original_max_position_embeddings": data.get(f"{arch}.rope.scaling.original_context_length"),
    }


def _llama3_scaling(factors: torch.Tensor, data: Mapping[str, Any], arch: str) -> dict[str, Any]:
    """Llama 3.1 and later differ in `factor` only; the other constants are the same in every release."""
    return {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": int(data.get(f"{arch}.rope.scaling.original_context_length") or 8192),
    }
