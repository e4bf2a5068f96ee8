"""Whole models of 8-bit floats on the CPU's reference: made while loading, or stored so; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo import LLM, SamplingParams
from octavo.errors import ConfigError, ModelFileError
from octavo.kernels.fp8 import quantize_rows
from octavo.weights.checkpoint import open_checkpoint
from tests.tiny_models import make_tiny_llama

OPTIONS: dict[str, Any] = {"skip_tokenizer_init": True, "device": "cpu", "num_gpu_blocks_override": 40}
PROMPTS = [[5, 9, 200, 31, 7, 7], [100] * 30]
TENSOR = {"quant_method": "fp8", "activation_scheme": "static"}
CHANNEL = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}},
}


def logprobs(folder: Path, **options: Any) -> torch.Tensor:
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    with LLM(str(folder), **OPTIONS, **options) as llm:
        results = llm.generate(PROMPTS, params, use_tqdm=False)
    return torch.tensor([e.logprob for r in results for e in r.prompt_logprobs[1:] if e is not None])


def store(folder: Path, quantization: dict[str, Any], per_tensor: bool) -> tuple[Path, dict[str, torch.Tensor]]:
    """Make the folder's matrices e4m3; returns it, and what they stand for now."""
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    meant = dict(tensors)
    for name in [name for name in tensors if "_proj." in name]:
        rows = quantize_rows(tensors[name].reshape(1, -1) if per_tensor else tensors[name])
        tensors[name] = rows.values.view(meant[name].shape)
        tensors[f"{name}_scale"] = rows.scales.flatten()[0] if per_tensor else rows.scales
        meant[name] = tensors[name].float() * rows.scales
    save_file(tensors, folder / "model.safetensors")
    return folder, meant


@pytest.mark.parametrize("quantization", ["fp8", "fp8_per_tensor"])
def test_a_model_made_fp8_while_loading_is_near_the_plain_one(tmp_path: Path, quantization: str) -> None:
    folder = make_tiny_llama(tmp_path / "model", tokenizer=False)
    plain, found = logprobs(folder), logprobs(folder, quantization=quantization)
    assert 1e-4 < (found - plain).abs().mean() < 0.25


@pytest.mark.parametrize(("quantization", "per_tensor"), [(TENSOR, True), (CHANNEL, False)])
def test_stored_matrices_are_read_as_they_are(tmp_path: Path, quantization: dict[str, Any], per_tensor: bool) -> None:
    folder, meant = store(make_tiny_llama(tmp_path / "model", tokenizer=False), quantization, per_tensor)
    source = open_checkpoint(folder).weights
    for name, tensor in meant.items():
        assert torch.equal(source.get(name, tuple(tensor.shape)), tensor), name
    found = source.e4m3("model.layers.1.mlp.up_proj.weight")
    assert found is not None and found.scale.shape == (96,)
    assert source.e4m3("model.norm.weight") is None and source.e4m3("lm_head.weight") is None

    same = make_tiny_llama(tmp_path / "same", tokenizer=False)
    save_file(meant, same / "model.safetensors")
    assert torch.allclose(logprobs(folder), logprobs(same), atol=1e-5), "on a CPU, auto makes float32 of them"
    exact = logprobs(same, quantization="fp8") if not per_tensor else None
    if exact is not None:  # quantizing again what was quantized by rows changes nothing
        assert torch.allclose(logprobs(folder, quantization="fp8"), exact, atol=1e-3)


@pytest.mark.parametrize(
    ("quantization", "named"),
    [
        ({"quant_method": "awq", "bits": 4}, "awq"),
        (TENSOR | {"weight_block_size": [128, 128]}, r"blocks of \[128, 128\]"),
        (TENSOR | {"fmt": "e5m2"}, "e5m2"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}}, "pack-quantized"),
        ([1], "unnamed"),
    ],
)
def test_other_schemes_are_refused_by_name(tmp_path: Path, quantization: Any, named: str) -> None:
    folder = make_tiny_llama(tmp_path / "model", tokenizer=False)
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFileError, match=named) as caught:
        open_checkpoint(folder)
    assert caught.value.code == "unsupported_quantization"
    assert not open_checkpoint(folder, "dummy").fp8, "random weights are nobody's scheme"


@pytest.mark.parametrize(
    ("scale", "why"),
    [(None, "no scale"), (torch.ones(3), "3 scales for 64"), (torch.tensor(float("nan")), "not finite")],
)
def test_scales_that_do_not_fit_are_refused(tmp_path: Path, scale: torch.Tensor | None, why: str) -> None:
    folder, _ = store(make_tiny_llama(tmp_path / "model", tokenizer=False), TENSOR, True)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    del tensors[f"{name}_scale"]
    save_file(tensors | ({} if scale is None else {f"{name}_scale": scale}), folder / "model.safetensors")
    with pytest.raises(ModelFileError, match=why):
        open_checkpoint(folder).weights.get(name)


@pytest.mark.parametrize("name", ["fp8", "fp8_e4m3"])
def test_fp8_pages_are_for_gpus(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="for GPUs") as caught:
        LLM(str(make_tiny_llama(tmp_path / "model", tokenizer=False)), **OPTIONS, kv_cache_dtype=name)
    assert caught.value.param == "kv_cache_dtype"
