"""GGUF's names and keys in Hugging Face's words, one entry an architecture."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any

import torch

from octavo.errors import ModelFileError
from octavo.weights.gguf import GGUFFile
from octavo.weights.gguf_dequant import dequantize, four_bit
from octavo.weights.source import FourBit, check_shape, missing_tensor

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
            "attn_q": config["num_attention_heads"],
            "attn_k": config["num_key_value_heads"],
        }

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        ours = gguf_name(name)
        if ours not in self._file.tensors:
            raise missing_tensor(name, str(self._file.path))
        check_shape(name, self._file.tensors[ours].shape, shape)
        tensor = dequantize(self._file, ours)
        heads = self._heads.get(ours.rpartition(".")[0].rpartition(".")[2])
        if heads is None:
            return tensor
        if len(tensor) % (2 * heads):
            raise ModelFileError(
                f"The tensor {ours!r} has {len(tensor)} rows, which are not {heads} heads of an even size.",
                fix="The file is damaged: download it again.",
            )
        return _half_split(tensor, heads)

    def four_bit(self, name: str) -> FourBit | None:
        ours = gguf_name(name)
        if ours not in self._file.tensors:
            raise missing_tensor(name, str(self._file.path))
        blocks = four_bit(self._file, ours)
        heads = self._heads.get(ours.rpartition(".")[0].rpartition(".")[2])
        if blocks is None or heads is None or len(blocks.q) % (2 * heads):
            return blocks
        return FourBit(*(_half_split(part, heads) for part in blocks))

    def e4m3(self, name: str) -> None:
        """Nothing is stored so."""

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
        ModelFileError: the architecture is not supported, a key is missing or impossible, or the file is one part of
            several.
    """
    arch = file.metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in ARCHITECTURES:
        raise ModelFileError(
            f"{file.path} holds the architecture {reprlib.repr(arch)}, which is not supported.",
            fix=f"Supported in GGUF files: {', '.join(ARCHITECTURES)}.",
            code="unsupported_architecture",
        )
    if "token_embd.weight" not in file.tensors or len(file.tensors["token_embd.weight"].shape) != 2:
        _refuse_a_part(file)
        raise missing_tensor("token_embd.weight", str(file.path))
    _refuse_a_part(file)
    keys = _Keys(file, arch)
    vocab_size = file.tensors["token_embd.weight"].shape[0]
    hidden, heads = keys.whole("embedding_length"), keys.whole("attention.head_count")
    head_dim = _head_dim(keys, hidden, heads)
    theta, context = keys.number("rope.freq_base", 10000.0), keys.whole("context_length")
    return {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "hidden_size": hidden,
        "intermediate_size": keys.whole("feed_forward_length"),
        "num_hidden_layers": keys.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.whole("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": vocab_size,
        "max_position_embeddings": context,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(keys, theta, head_dim, context),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "torch_dtype": "float32",
        "bos_token_id": _token_id(file, "tokenizer.ggml.bos_token_id", vocab_size),
        "eos_token_id": _token_id(file, "tokenizer.ggml.eos_token_id", vocab_size),
    }


def _refuse_a_part(file: GGUFFile) -> None:
    parts = file.metadata.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise ModelFileError(
            f"{file.path} is one of {parts} parts of a model.",
            fix="Join them with llama.cpp's tool (llama-gguf-split --merge FIRST-PART OUTPUT) and name the result.",
            code="unsupported_split_file",
        )


class _Keys:
    """An architecture's keys, each read as what it must be."""

    def __init__(self, file: GGUFFile, arch: str):
        self.file, self.arch = file, arch

    def get(self, name: str, default: Any = None) -> Any:
        return self.file.metadata.get(f"{self.arch}.{name}", default)

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number from 1 to 2³¹ - 1."""
        value = self._required(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 1 << 31:
            raise self.impossible(name, value, "must be a positive whole number, one for all layers")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self._required(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self.impossible(name, value, "must be a number above 0")
        return float(value)

    def impossible(self, name: str, value: Any, why: str) -> ModelFileError:
        return ModelFileError(
            f"{self.file.path} says {self.arch}.{name} = {reprlib.repr(value)}, which {why}.",
            fix="Use another file of the model.",
        )

    def _required(self, name: str, default: Any) -> Any:
        value = self.get(name, default)
        if value is None:
            raise ModelFileError(f"{self.file.path} has no key {self.arch}.{name}.", fix="Download the file again.")
        return value


def _head_dim(keys: _Keys, hidden: int, heads: int) -> int:
    """Keys, values and rotation must all have one size: a rotation of only a part of each head is not served."""
    fallback = hidden // heads if hidden % heads == 0 else None
    rotated = keys.get("rope.dimension_count")
    head_dim = keys.whole("attention.key_length", rotated if rotated is not None else fallback)
    for name in ("rope.dimension_count", "attention.value_length"):
        if keys.get(name, head_dim) != head_dim:
            raise keys.impossible(name, keys.get(name), f"is not served with heads of {head_dim}")
    return head_dim


def _token_id(file: GGUFFile, key: str, vocab_size: int) -> int | None:
    value = file.metadata.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab_size):
        raise ModelFileError(
            f"{file.path} says {key} = {reprlib.repr(value)}, which is no id of its {vocab_size} tokens.",
            fix="Download the file again.",
        )
    return value


def _rope_scaling(keys: _Keys, theta: float, head_dim: int, context: int) -> dict[str, Any] | None:
    """Linear and YaRN are metadata; Llama 3's is a tensor of factors. Anything else would give wrong text: refused."""
    if "rope_freqs.weight" in keys.file.tensors:
        return _llama3_scaling(keys, theta, head_dim)
    kind = keys.get("rope.scaling.type", "linear" if keys.get("rope.scaling.factor") is not None else "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise keys.impossible("rope.scaling.type", kind, "is not supported (linear, yarn and llama3 are)")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": keys.number("rope.scaling.factor", 1.0)}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = keys.whole("rope.scaling.original_context_length", context)
    return scaling


def _llama3_scaling(keys: _Keys, theta: float, head_dim: int) -> dict[str, Any]:
    """Llama 3.1 and later differ in `factor` only, the greatest of the factors that each frequency is divided by.

    The factors are made again from it and compared: they may be those of another way to stretch (LongRoPE, say).
    """
    trained = keys.whole("rope.scaling.original_context_length", 8192)
    factors = dequantize(keys.file, "rope_freqs.weight").double()
    factor = float(factors.max())
    turns = trained / (2 * math.pi) * theta ** -_exponents(head_dim)
    blend = ((turns - 1.0) / (4.0 - 1.0)).clamp(0, 1)
    expected = 1 / (blend + (1 - blend) / factor) if factor >= 1 else factors[:0]
    if factors.shape != expected.shape or not torch.allclose(factors, expected, rtol=1e-3, atol=0):
        raise ModelFileError(
            f"{keys.file.path} stretches its rotary frequencies (rope_freqs.weight) in a way that is not Llama 3's.",
            fix="Only Llama 3's way is supported as a tensor: use another model.",
            code="unsupported_rope_scaling",
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": trained,
    }


def _exponents(head_dim: int) -> torch.Tensor:
    return torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
