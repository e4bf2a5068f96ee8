"""Architecture name, as in config.json's `architectures`, to the class that serves it."""

from __future__ import annotations

from octavo.errors import ModelFileError
from octavo.layers.context import LayerContext
from octavo.model_config import ModelConfig
from octavo.models.llama import Llama

ARCHITECTURES = {"LlamaForCausalLM": Llama}


def check_supported(architecture: str) -> None:
    """Raises ModelFileError for an architecture no class serves."""
    if architecture not in ARCHITECTURES:
        raise ModelFileError(
            f"The architecture {architecture!r} is not supported.",
            fix=f"Supported: {', '.join(sorted(ARCHITECTURES))}.",
            code="unsupported_architecture",
        )


def build_model(config: ModelConfig, ctx: LayerContext) -> Llama:
    """Build the model and load its weights."""
    check_supported(config.architecture)
    return ARCHITECTURES[config.architecture](config, ctx)
