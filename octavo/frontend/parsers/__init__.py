"""Calls and reasoning in what models write: `get("hermes")` gives a format, `AnswerParser` reads an answer with it."""

from __future__ import annotations

from octavo.frontend.parsers.answer import AnswerParser, read_answer
from octavo.frontend.parsers.calls import Offered
from octavo.frontend.parsers.cursor import Piece
from octavo.frontend.parsers.formats import ToolFormat
from octavo.frontend.parsers.names import (
    REASONING_NAMES,
    TOOL_NAMES,
    detect_reasoning,
    detect_tools,
    get,
    get_reasoning,
)
from octavo.frontend.parsers.reasoning import ReasoningFormat

__all__ = [
    "REASONING_NAMES",
    "TOOL_NAMES",
    "AnswerParser",
    "Offered",
    "Piece",
    "ReasoningFormat",
    "ToolFormat",
    "detect_reasoning",
    "detect_tools",
    "get",
    "get_reasoning",
    "read_answer",
]
