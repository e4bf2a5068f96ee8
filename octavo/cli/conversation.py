"""The chat at a terminal that `run` and `chat` share."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from octavo.cli.terminal import Answer, Interruption, TextPrinter, note, show
from octavo.errors import InvalidRequestError, OverloadedError, RequestFailedError

Message = dict[str, Any]
Ask = Callable[[list[Message], Answer], Iterator[str]]
"""Answers a conversation: yields pieces of text and keeps the counts in the `Answer`."""

_HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."


def opening(system: str | None) -> list[Message]:
    """The messages that a conversation starts with."""
    return [{"role": "system", "content": system}] if system else []


def answer_once(ask: Ask, messages: list[Message], *, stats: bool) -> Answer:
    """Stream one answer to stdout. Ctrl-C ends it and the program."""
    answer, interruption = Answer(), Interruption()
    with interruption:
        show(ask(messages, answer), answer, TextPrinter(), interruption)
    remark(answer, stats)
    if interruption.asked:
        raise KeyboardInterrupt
    return answer


def remark(answer: Answer, stats: bool) -> None:
    """Say below an answer what its text does not: that it was cut, and its numbers if wanted."""
    if answer.finish_reason == "length":
        note(f"[cut after {answer.tokens} tokens: raise --max-tokens, or the context is full]")
    if stats:
        note(answer.stats())


def converse(ask: Ask, *, system: str | None, stats: bool) -> None:
    """Chat until Ctrl-D or /exit. A message that the engine refuses is forgotten; the chat goes on."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() line editing and history
    note(_HELP)
    messages = opening(system)
    while (line := _read_line()) is not None:
        if line in ("/exit", "/quit", "/bye"):
            return
        if line == "/reset":
            messages = opening(system)
            note("The conversation starts anew.")
        elif line.startswith("/"):
            note(_HELP)
        elif line:
            messages = _turn(ask, messages, line, stats)


def _turn(ask: Ask, messages: list[Message], line: str, stats: bool) -> list[Message]:
    """One question and its answer; returns the conversation with both."""
    asked = [*messages, {"role": "user", "content": line}]
    answer, interruption = Answer(), Interruption()
    try:
        with interruption:
            show(ask(asked, answer), answer, TextPrinter(), interruption)
    except (InvalidRequestError, OverloadedError, RequestFailedError) as error:
        note(str(error))
        return messages
    remark(answer, stats)
    return [*asked, {"role": "assistant", "content": answer.text}]


def _read_line() -> str | None:
    """The next line typed; None at Ctrl-D. Ctrl-C at the prompt drops what was typed."""
    while True:
        try:
            return input(">>> ").strip()
        except EOFError:
            print(file=sys.stdout)
            return None
        except KeyboardInterrupt:
            print(file=sys.stdout)
