"""What a model's makers advise for sampling: `generation_config.json` beside its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from octavo.config import EngineConfig
from octavo.errors import ConfigError, ModelNotFoundError, OctavoError
from octavo.request import SamplingParams
from octavo.validation import validate_params
from octavo.weights.resolve import resolve

_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
_FILE = "generation_config.json"
_MAX_BYTES = 1 << 20


def sampling_defaults(source: str, config: EngineConfig) -> dict[str, Any]:
    """Fields of `SamplingParams` for requests that do not name them.

    Args:
        source: "auto" for the model's own file, if it has one; "none" for nothing; or a folder with such a file.

    Raises:
        ConfigError: the folder has none, or what it says cannot be.
    """
    if source == "none":
        return {}
    file = _own_file(config) if source == "auto" else Path(source) / _FILE
    if file is None or (source == "auto" and not file.is_file()):
        return {}
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _refused(file, f"cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise _refused(file, "is no JSON object")
    found = {ours: content[theirs] for theirs, ours in _NAMES.items() if content.get(theirs) is not None}
    if isinstance(found.get("temperature"), int):
        found["temperature"] = float(found["temperature"])
    try:
        validate_params(SamplingParams(**found), vocab_size=1 << 30, max_model_len=1 << 30, max_logprobs=0)
    except (OctavoError, TypeError) as error:
        raise _refused(file, f"advises what cannot be: {error}") from error
    return found


def _own_file(config: EngineConfig) -> Path | None:
    try:
        path = resolve(config.model.model, revision=config.model.revision)
    except ModelNotFoundError:  # an engine that needs no files, as the simulated one
        return None
    return (path.parent if path.is_file() else path) / _FILE


def _refused(file: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"{file} {reason}.", fix="Correct it, or give --generation-config none.", param="generation_config"
    )
