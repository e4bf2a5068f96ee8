"""GGUF and safetensors hold the same model: the same tensors under the same names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from octavo.model_config import ModelConfig
from octavo.weights.checkpoint import open_checkpoint
from tests.tiny_models import llama_tensors, make_tiny_gguf, make_tiny_llama

SHAPE = {"intermediate_size": 128}


@pytest.mark.parametrize("shards", [1, 3])
def test_safetensors_give_what_was_saved(tmp_path: Path, shards: int) -> None:
    checkpoint = open_checkpoint(make_tiny_llama(tmp_path / "tiny", shards=shards, **SHAPE))
    expected = llama_tensors(dict(checkpoint.config))
    assert sorted(checkpoint.weights.names()) == sorted(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(checkpoint.weights.get(name, tuple(tensor.shape)), tensor, rtol=0, atol=0)


@pytest.mark.parametrize(("quantization", "tolerance"), [("F32", 0.0), ("F16", 1e-3), ("Q8_0", 5e-3)])
def test_gguf_gives_the_same_tensors_in_the_same_order(tmp_path: Path, quantization: str, tolerance: float) -> None:
    checkpoint = open_checkpoint(make_tiny_gguf(tmp_path / "tiny.gguf", quantization=quantization))
    folder = open_checkpoint(make_tiny_llama(tmp_path / "tiny", **SHAPE))
    for name in folder.weights.names():
        theirs = folder.weights.get(name)
        ours = checkpoint.weights.get(name, tuple(theirs.shape)).float()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    ours_config, theirs_config = ModelConfig.from_hf(checkpoint.config), ModelConfig.from_hf(folder.config)
    assert ours_config.rms_norm_eps == pytest.approx(theirs_config.rms_norm_eps)
    for key in ("hidden_size", "head_dim", "num_key_value_heads", "vocab_size", "rope", "tie_word_embeddings"):
        assert getattr(ours_config, key) == getattr(theirs_config, key)
