"""Where reasoning stands in an answer: before the answer proper, between two markers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from octavo.frontend.parsers.cursor import Cursor, Malformed, Markers, Steps


@dataclass(frozen=True)
class ReasoningFormat:
    """One way of writing it.

    Attributes:
        name: as `--reasoning-parser` has it.
        begin, end: spellings of the markers; the prompt may end with the first.
        open_at_start: an answer begins with reasoning although no marker says so, unless the prompt closed it.
        whole_answer: reasoning is a part of the format of the whole answer (`octavo.frontend.parsers.harmony`).
        signs: strings that a chat template of such a model has, all of one of the groups.
    """

    name: str
    begin: tuple[str, ...] = ("<think>",)
    end: tuple[str, ...] = ("</think>",)
    open_at_start: bool = False
    whole_answer: bool = False
    signs: tuple[tuple[str, ...], ...] = ()

    @cached_property
    def end_markers(self) -> Markers:
        return Markers(self.end)

    def starts_open(self, prompt_tail: str) -> bool:
        """Whether an answer after a prompt that ends so is reasoning from its first character on."""
        tail = prompt_tail.rstrip()
        if tail.endswith(self.begin):
            return True
        return self.open_at_start and not tail.endswith(self.end)


REASONING = (
    ReasoningFormat(
        "harmony",
        ("<|channel|>", "<|start|>", "<|message|>", "<|constrain|>"),
        ("<|end|>", "<|return|>", "<|call|>"),
        whole_answer=True,
        signs=(("<|channel|>", "<|message|>"),),
    ),
    ReasoningFormat("deepseek_r1", open_at_start=True, signs=(("</think>", "<｜Assistant｜>"),)),
    ReasoningFormat("mistral", ("[THINK]",), ("[/THINK]",), signs=(("[THINK]", "[/THINK]"),)),
    ReasoningFormat(
        "granite",
        ("Here is my thought process:", "Here's my thought process:"),
        ("Here is my response:", "Here's my response:"),
        signs=(("Here is my thought process:", "Here is my response:"),),
    ),
    ReasoningFormat("qwen3", signs=(("</think>",),)),
)


def read_reasoning(
    cursor: Cursor, reasoning: ReasoningFormat, is_open: bool, answer: Callable[[str], None]
) -> Steps[None]:
    """Reasoning, if the answer begins with any; all after it goes to `answer`."""
    cursor.hold()
    try:
        yield from cursor.blanks()
        begun = yield from cursor.literal(*reasoning.begin)
    except Malformed:  # nothing but blanks
        begun = ""
    if begun or is_open:
        cursor.drop()
        yield from cursor.blanks()
        yield from cursor.until(reasoning.end_markers, cursor.reasoning)
        yield from cursor.blanks()
    else:
        cursor.back()
    while True:
        if cursor.at < len(cursor.text):
            answer(cursor.text[cursor.at :])
            cursor.at = len(cursor.text)
        if not (yield from cursor.more()):
            return
