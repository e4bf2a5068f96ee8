"""A model's files as one thing: its config, its tensors, and where its tokenizer is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo.errors import ConfigError, ModelFileError
from octavo.weights.dummy import DummySource
from octavo.weights.fp8 import Fp8Source, stores_fp8
from octavo.weights.gguf import GGUFFile
from octavo.weights.gguf_arch import GGUFSource, hf_config
from octavo.weights.safetensors import SafetensorsSource
from octavo.weights.source import WeightSource

_MAX_JSON = 64 << 20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened model.

    Attributes:
        name: what to call it: the file's stem or the folder's name.
        config: config.json's keys (translated for a GGUF file).
        gguf: the file, if it is one; else `folder` is set.
        fp8: matrices are stored as 8-bit floats.
    """

    name: str
    config: Mapping[str, Any]
    weights: WeightSource
    gguf: GGUFFile | None = None
    folder: Path | None = None
    fp8: bool = False
    generation_config: Mapping[str, Any] = field(default_factory=dict)


def open_checkpoint(path: Path, load_format: str = "auto", *, seed: int = 0) -> Checkpoint:
    """Open a .gguf file or a folder with config.json.

    Args:
        load_format: auto, gguf, safetensors or dummy; auto takes what is there.
        seed: of dummy weights.

    Raises:
        ModelFileError: a file is damaged or missing.
        ConfigError: the load format does not fit the path.
    """
    file = _gguf_file(path, load_format)
    if file is not None:
        gguf = GGUFFile(file)
        config = hf_config(gguf)
        weights: WeightSource = DummySource(seed) if load_format == "dummy" else GGUFSource(gguf, config)
        return Checkpoint(file.stem, config, weights, gguf=gguf)
    if path.is_file():
        raise ConfigError(f"{path} is no .gguf file.", fix="Give a .gguf file or a folder.", param="model")
    config = read_json_object(path / "config.json")
    generation_file = path / "generation_config.json"
    generation = read_json_object(generation_file) if generation_file.is_file() else {}
    if load_format == "dummy":
        return Checkpoint(path.resolve().name, config, DummySource(seed), folder=path, generation_config=generation)
    fp8 = stores_fp8(config)
    source: WeightSource = SafetensorsSource(path)
    return Checkpoint(
        path.resolve().name,
        config,
        Fp8Source(source) if fp8 else source,
        folder=path,
        fp8=fp8,
        generation_config=generation,
    )


def _gguf_file(path: Path, load_format: str) -> Path | None:
    """The GGUF file that a path means: itself, or the only one of a folder that has no config.json."""
    if path.suffix == ".gguf":
        if load_format == "safetensors":
            raise ConfigError(
                f"--load-format safetensors does not fit {path.name}.", fix="Leave it out.", param="load_format"
            )
        return path
    if load_format == "safetensors" or (load_format != "gguf" and (path / "config.json").is_file()):
        return None
    found = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if len(found) > 1:
        raise ConfigError(
            f"{path} has {len(found)} GGUF files.",
            fix=f"Name one of them: {', '.join(file.name for file in found)}.",
            param="model",
        )
    if not found and load_format == "gguf":
        raise ConfigError(f"{path} has no GGUF file.", fix="Leave --load-format out.", param="load_format")
    return found[0] if found else None


def read_json_object(path: Path) -> dict[str, Any]:
    """A bounded JSON file that holds an object.

    Raises:
        ModelFileError: it is missing, too large, or something else.
    """
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ModelFileError(f"{path} is larger than {_MAX_JSON >> 20} MiB.", fix="Download it again.")
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ModelFileError(f"{path} is missing.", fix="Download the model again, or name its .gguf file.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} cannot be read as JSON: {error}.", fix="Download it again.") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} is no JSON object.", fix="Download it again.")
    return value
