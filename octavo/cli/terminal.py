"""What the verbs write to a terminal: streamed text, a progress line, and how Ctrl-C ends an answer."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any, TextIO

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline: a model must not drive the terminal
_BAR_CELLS = 24
_REDRAW_SECONDS = 0.05


class TextPrinter:
    """Writes streamed text at once. On a terminal control characters are left out."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stdout
        self._is_terminal = self._stream.isatty()
        self._at_line_start = True

    def write(self, text: str) -> None:
        """Show a piece of text."""
        if not text:
            return
        self._stream.write(_CONTROL.sub("", text) if self._is_terminal else text)
        self._stream.flush()
        self._at_line_start = text.endswith("\n")

    def end_line(self) -> None:
        """Start a new line, unless one has just begun."""
        if not self._at_line_start:
            self.write("\n")


class ProgressLine:
    """One line on stderr that shows a phase and how much of it is done; silent when stderr is no terminal.

    An instance is a `(phase, fraction)` callback, as `octavo.llm.LLM` and `octavo.weights` take.
    """

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._shown = self._stream.isatty()
        self._last = ("", 0.0)

    def __call__(self, phase: str, fraction: float) -> None:
        """Redraw, at most every 50 ms within a phase."""
        if not self._shown:
            return
        now = time.monotonic()
        if phase == self._last[0] and fraction < 1.0 and now - self._last[1] < _REDRAW_SECONDS:
            return
        self._last = (phase, now)
        full = round(_BAR_CELLS * min(1.0, max(0.0, fraction)))
        bar = "█" * full + "░" * (_BAR_CELLS - full)
        self._stream.write(f"\r\x1b[K{bar} {fraction:4.0%}  {_CONTROL.sub('', phase)}")
        self._stream.flush()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove the line."""
        if self._shown and self._last[0]:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._last = ("", 0.0)


class Interruption:
    """Within the block, the first Ctrl-C sets `asked`; a second one raises KeyboardInterrupt as usual.

    The engine runs in this process: an exception in the middle of a step would leave it in no defined state.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Interruption:
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@dataclass
class Answer:
    """One streamed answer. Times are `time.perf_counter()`; `tokens` counts generated ones.

    Attributes:
        prompt_tokens, cached_tokens: of the prompt, and how many of them the prefix cache held; None if unknown.
        finish_reason: as in the OpenAI API; "interrupted" after Ctrl-C.
    """

    started: float = field(default_factory=time.perf_counter)
    first_token: float | None = None
    ended: float | None = None
    text: str = ""
    tokens: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None

    def stats(self) -> str:
        """The answer's numbers in one line: time to first token, tokens a second while decoding, counts."""
        if self.first_token is None or self.ended is None:
            return "no token came"
        parts = [f"first token after {self.first_token - self.started:.2f} s"]
        decoding = self.ended - self.first_token
        if self.tokens > 1 and decoding > 0:
            parts.append(f"{(self.tokens - 1) / decoding:.1f} tok/s")
        parts.append(f"{self.tokens} tokens")
        if self.prompt_tokens is not None:
            cached = f" ({self.cached_tokens} cached)" if self.cached_tokens else ""
            parts.append(f"prompt {self.prompt_tokens}{cached}")
        return " · ".join(parts)


def show(pieces: Iterable[str], answer: Answer, printer: TextPrinter, interruption: Interruption) -> None:
    """Print an answer as it comes and keep its text; a Ctrl-C ends it there."""
    iterator: Iterator[str] = iter(pieces)
    try:
        for piece in iterator:
            printer.write(piece)
            answer.text += piece
            if interruption.asked:
                answer.finish_reason = "interrupted"
                break
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
        answer.ended = time.perf_counter()
        printer.end_line()


def note(text: str) -> None:
    """A remark beside the answer: on stderr, dim on a terminal."""
    print(f"\x1b[2m{text}\x1b[0m" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)
