"""The formats by name, with the names other engines have for them; and which one a model uses."""

from __future__ import annotations

from octavo.errors import ConfigError
from octavo.frontend.parsers.formats import FORMATS, ToolFormat
from octavo.frontend.parsers.reasoning import REASONING, ReasoningFormat

_ALIASES = {
    "granite-20b-fc": "granite",
    "llama4_json": "llama3_json",
    "llama4_pythonic": "pythonic",
    "openai": "harmony",
    "qwen3_xml": "qwen3_coder",
}
_REASONING_ALIASES = {"openai_gptoss": "harmony", "deepseek_v3": "qwen3"}
_BY_NAME = {each.name: each for each in FORMATS}
_REASONING_BY_NAME = {each.name: each for each in REASONING}
TOOL_NAMES = tuple(sorted([*_BY_NAME, *_ALIASES]))
REASONING_NAMES = tuple(sorted([*_REASONING_BY_NAME, *_REASONING_ALIASES]))


def get(name: str) -> ToolFormat:
    """A format for calls by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    found = _BY_NAME.get(_ALIASES.get(name, name))
    if found is None:
        raise _unknown("tool_call_parser", name, TOOL_NAMES)
    return found


def get_reasoning(name: str) -> ReasoningFormat:
    """A format for reasoning by its name; errors as of `get`."""
    found = _REASONING_BY_NAME.get(_REASONING_ALIASES.get(name, name))
    if found is None:
        raise _unknown("reasoning_parser", name, REASONING_NAMES)
    return found


def detect_tools(template: str) -> ToolFormat | None:
    """The format whose signs a chat template has; None if it has none of any."""
    return next((each for each in FORMATS if _has_signs(template, each.signs)), None)


def detect_reasoning(template: str) -> ReasoningFormat | None:
    """As `detect_tools`, for reasoning."""
    return next((each for each in REASONING if _has_signs(template, each.signs)), None)


def _has_signs(template: str, signs: tuple[tuple[str, ...], ...]) -> bool:
    return any(all(sign in template for sign in group) for group in signs)


def _unknown(param: str, name: str, known: tuple[str, ...]) -> ConfigError:
    flag = "--" + param.replace("_", "-")
    return ConfigError(
        f"{flag} cannot be {name[:100]!r}.", fix=f"Choose one of: auto, none, {', '.join(known)}.", param=param
    )
