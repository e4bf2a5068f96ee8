"""`AnswerParser`: one answer's text, as it comes, into reasoning, content and calls."""

from __future__ import annotations

from functools import partial

from octavo.frontend.parsers.calls import Offered
from octavo.frontend.parsers.cursor import Cursor, Piece, Steps, TextParser, joined
from octavo.frontend.parsers.formats import ToolFormat, read_tool_calls
from octavo.frontend.parsers.harmony import read_harmony
from octavo.frontend.parsers.reasoning import ReasoningFormat, read_reasoning


class AnswerParser:
    """Reads one answer.

    Every chunking of a text gives the same pieces, up to where pieces of one kind are cut.

    Args:
        tools: how calls are written; None leaves them in the text.
        offered: what may be called.
        reasoning: how reasoning is written; None leaves it in the text.
        prompt_tail: the last words of the prompt, which may have begun or ended the reasoning.
        max_calls: calls beyond this are left out; None is any number.
    """

    __slots__ = ("_answer", "_pieces", "_reasoning")

    def __init__(
        self,
        tools: ToolFormat | None,
        offered: Offered | None = None,
        *,
        reasoning: ReasoningFormat | None = None,
        prompt_tail: str = "",
        max_calls: int | None = None,
    ):
        self._pieces: list[Piece] = []
        self._reasoning: TextParser | None = None
        self._answer: TextParser | None = None
        if (tools is not None and tools.whole_answer) or (reasoning is not None and reasoning.whole_answer):
            calls = offered or Offered() if tools is not None else None
            self._answer = TextParser(partial(read_harmony, offered=calls), max_calls)
            return
        if tools is not None:
            known = Offered((offered or Offered()).tools, known_only=tools.known_only)
            self._answer = TextParser(lambda cursor: read_tool_calls(cursor, tools, known), max_calls)
        if reasoning is not None:
            is_open = reasoning.starts_open(prompt_tail)
            self._reasoning = TextParser(lambda cursor: self._read_reasoning(cursor, reasoning, is_open))

    def _read_reasoning(self, cursor: Cursor, reasoning: ReasoningFormat, is_open: bool) -> Steps[None]:
        return read_reasoning(cursor, reasoning, is_open, self._take_answer)

    def _take_answer(self, text: str) -> None:
        self._pieces += self._answer.feed(text) if self._answer is not None else [Piece("content", text)]

    def feed(self, text: str) -> list[Piece]:
        """What is certain with more text."""
        if self._reasoning is None:
            self._take_answer(text)
            return self._taken()
        found = self._reasoning.feed(text)
        return joined(found + self._taken())

    def finish(self) -> list[Piece]:
        """The rest, when no more text comes."""
        found = self._reasoning.finish() if self._reasoning is not None else []
        if self._answer is not None:
            self._pieces += self._answer.finish()
        return joined(found + self._taken())

    def _taken(self) -> list[Piece]:
        taken, self._pieces = self._pieces, []
        return [piece for piece in taken if piece.text or piece.kind == "call"]


def read_answer(parser: AnswerParser, text: str) -> list[Piece]:
    """A whole answer at once."""
    return joined(parser.feed(text) + parser.finish())
