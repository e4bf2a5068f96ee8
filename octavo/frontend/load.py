"""A front end for an engine that is loaded: tokenizer, request maker, output processor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.frontend.inputs import InputProcessor
from octavo.frontend.outputs import OutputProcessor
from octavo.frontend.tokenizer import Tokenizer, load_tokenizer
from octavo.weights.gguf import GGUFFile
from octavo.weights.resolve import resolve


class Limits(Protocol):
    """What a front end must know of the engine (`octavo.engine.info.EngineInfo` has it)."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def max_model_len(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Frontend:
    """Text to requests and steps to text, for one model."""

    tokenizer: Tokenizer | None
    inputs: InputProcessor
    outputs: OutputProcessor


def load_frontend(
    config: EngineConfig, limits: Limits, *, max_logprobs: int = 20, default_max_tokens: int | None = None
) -> Frontend:
    """Load the tokenizer and build the front end.

    Raises:
        ModelNotFoundError, ModelFileError: the tokenizer is missing, or of a kind that is not supported.
        ConfigError: the chat template's file cannot be read.
    """
    tokenizer = None if config.model.skip_tokenizer_init else open_tokenizer(config)
    inputs = InputProcessor(
        tokenizer,
        vocab_size=limits.vocab_size,
        max_model_len=limits.max_model_len,
        seed=config.model.seed,
        chat_template=_chat_template(config.model.chat_template),
        max_logprobs=max_logprobs,
        default_max_tokens=default_max_tokens,
        structured_outputs_timeout=config.model.structured_outputs_timeout,
    )
    return Frontend(tokenizer, inputs, OutputProcessor(tokenizer))


def open_tokenizer(config: EngineConfig) -> Tokenizer:
    """The tokenizer that `--tokenizer` names, or the model's own."""
    own = Path(config.model.tokenizer or "")
    if config.model.tokenizer and (own / "tokenizer.json").is_file():  # a tokenizer alone is no model to resolve
        return load_tokenizer(own)
    path = resolve(config.model.tokenizer or config.model.model, revision=config.model.revision)
    files = [path] if path.suffix == ".gguf" else sorted(path.glob("*.gguf"))
    if not files or (path / "tokenizer.json").is_file():
        return load_tokenizer(path)
    with GGUFFile(files[0]) as gguf:
        return Tokenizer.from_gguf(gguf)


def _chat_template(file: str | None) -> str | None:
    if file is None:
        return None
    try:
        return Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The chat template {file} cannot be read: {error}.",
            fix="Give --chat-template the path of a Jinja file in UTF-8.",
            param="chat_template",
        ) from error
