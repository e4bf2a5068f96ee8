"""The way of weights through buffers changes nothing; that it is fast, a GPU shows (`benchmarks/gpu_load.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from octavo.layers.context import LayerContext
from octavo.model_config import ModelConfig
from octavo.models.registry import build_model
from octavo.quant import schemes
from octavo.weights.checkpoint import open_checkpoint
from octavo.weights.upload import Uploader
from tests.tiny_models import make_tiny_llama

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000])
def test_all_bytes_arrive(count: int) -> None:
    source = torch.randn(count, 3)
    target = torch.full_like(source, float("nan"))
    Uploader(CPU, chunk_bytes=256, slots=2)(source, target)
    assert torch.equal(source, target)


def test_other_types_and_shapes_are_refused() -> None:
    upload = Uploader(CPU, chunk_bytes=64, slots=1)
    with pytest.raises(ValueError, match="float16"):
        upload(torch.zeros(4), torch.zeros(4, dtype=torch.float16))
    with pytest.raises(ValueError, match="5"):
        upload(torch.zeros(4), torch.zeros(5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantization", ["none", "fp8"])
def test_a_model_is_the_same(dtype: torch.dtype, quantization: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_tiny_llama(tmp_path / "model"), "auto", seed=0)
    config = ModelConfig.from_hf(checkpoint.config)
    found = []
    for upload in (None, Uploader(CPU, chunk_bytes=1000, slots=2)):
        ctx = LayerContext(checkpoint.weights, CPU, dtype, schemes(quantization), upload=upload)
        model = build_model(config, ctx)
        layer = model.layers[1]
        linears = (model.embedding, layer.attn.qkv, layer.attn.out, layer.mlp.gate_up, layer.mlp.down, model.head)
        found.append([held.params.weight.view(torch.uint8) for held in linears])
    checkpoint.weights.close()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
