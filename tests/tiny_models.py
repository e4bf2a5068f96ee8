"""Small random models on disk, in the formats that real ones come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

SHAPE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 320,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 0,
    "eos_token_id": 1,
}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def llama_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under Hugging Face's names, large enough that logits are far apart."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q, kv = (config[f"num_{kind}_heads"] * config["head_dim"] for kind in ("attention", "key_value"))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        shapes |= {f"{at}{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{at}self_attn.q_proj.weight": (q, hidden), f"{at}self_attn.o_proj.weight": (hidden, q)}
        shapes |= {f"{at}self_attn.{name}_proj.weight": (kv, hidden) for name in "kv"}
        shapes |= {f"{at}mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (hidden, inner)
    biased = [kind for kind, key in (("self_attn", "attention_bias"), ("mlp", "mlp_bias")) if config.get(key)]
    for name in [name for name in shapes if any(f".{kind}." in name for kind in biased)]:
        shapes[name.replace(".weight", ".bias")] = shapes[name][:1]
    return {
        name: torch.rand(shape, generator=generator) + 0.5
        if len(shape) == 1
        else torch.randn(shape, generator=generator) * (2 / shape[1] ** 0.5)
        for name, shape in shapes.items()
    }


def make_tiny_llama(folder: Path, *, seed: int = 0, shards: int = 1, tokenizer: bool = True, **changes: Any) -> Path:
    """A folder as the hub has it: config.json, safetensors (sharded if asked), tokenizer.json with a chat template."""
    config = {**SHAPE, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = llama_tensors(config, seed)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
    else:
        names = sorted(tensors)
        files = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)}
        for file in sorted(set(files.values())):
            save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    if tokenizer and config["vocab_size"] >= 300:
        _write_tokenizer(folder)
    return folder


SPECIALS = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]


def _vocabulary() -> list[str]:
    from tokenizers import pre_tokenizers

    return [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]


def _write_tokenizer(folder: Path) -> None:
    """Byte-level BPE over all 256 bytes, no merges, and the template's control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {token: i for i, token in enumerate(_vocabulary())}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIALS)
    backend.save(str(folder / "tokenizer.json"))
    facts = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))


def _add_gguf_tokenizer(writer: Any, config: dict[str, Any]) -> None:
    """The same tokenizer; ids without a token are unused ones, and the one merge makes the last of them."""
    known = _vocabulary()
    left, right = known[-2:]
    unused = [f"<unused{i}>" for i in range(len(known), config["vocab_size"] - 1)]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*known, *unused, left + right])
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(known) - len(SPECIALS)) + [5] * len(unused) + [1])
    writer.add_token_merges([f"{left} {right}"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_chat_template(CHAT_TEMPLATE)


def make_tiny_gguf(
    path: Path, *, seed: int = 0, quantization: str = "Q8_0", tokenizer: bool = False, **changes: Any
) -> Path:
    """The same model as llama.cpp would hold it: matrices quantized, q and k rows in its order; tokenizer if asked."""
    import gguf

    config = {**SHAPE, "hidden_size": 64, "intermediate_size": 128, **changes}
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    if tokenizer:
        _add_gguf_tokenizer(writer, config)
    kind = gguf.GGMLQuantizationType[quantization]
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    parts = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    for name, tensor in llama_tensors(config, seed).items():
        data = tensor.numpy()
        target = names.get(name)
        if target is None:
            _, _, layer, rest = name.split(".", 3)
            part = rest.removesuffix(".weight")
            target = f"blk.{layer}.{parts[part]}.weight"
            if part in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = config["num_attention_heads" if part.endswith("q_proj") else "num_key_value_heads"]
                data = data.reshape(heads, 2, -1, data.shape[1]).swapaxes(1, 2).reshape(data.shape)
        if data.ndim == 1:
            writer.add_tensor(target, np.ascontiguousarray(data))
        else:
            writer.add_tensor(target, gguf.quants.quantize(np.ascontiguousarray(data), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
