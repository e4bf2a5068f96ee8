"""The engine of the parsers: text that comes in pieces, read by straight-line generators.

A format is a generator function over a `Cursor`. It reads with the cursor's primitives (`yield from cursor.literal(x)`,
say), which wait for more text where the answer is not certain, and it tells what it found: content, reasoning, calls.
A primitive's result depends on the characters alone, never on where the text was cut: any chunking gives one result.

What may still turn out to be no call is held: `hold` marks where it begins, `Malformed` ends the attempt, and `release`
gives it out as content. Reading goes on where the attempt failed, so the cost is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from typing import Literal, NamedTuple, TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
Kind = Literal["content", "reasoning", "call", "arguments"]

MAX_HELD = 65536  # characters that may be held while it is not certain whether they are a call
MAX_BLANK = 64  # blanks before a call, or between calls, that are no content
_BLANK = re.compile(r"[ \t\r\n]*")


class Piece(NamedTuple):
    """A part of an answer. The text of a "call" is the function's name; "arguments" belong to the latest call."""

    kind: Kind
    text: str


class Malformed(Exception):
    """What began like a call is none, or a call breaks off."""


class Markers:
    """Strings to look for, none of which is inside another.

    Raises:
        ValueError: one is inside another: which one is found would depend on how the text is cut.
    """

    __slots__ = ("_heads", "_longest", "_pattern", "_words")

    def __init__(self, words: Sequence[str]):
        inside = [(one, other) for one in words for other in words if one != other and one in other]
        if inside or not all(words):
            raise ValueError(f"markers overlap or are empty: {inside}")
        self._words = tuple(words)
        self._pattern = re.compile("|".join(map(re.escape, words)) or r"(?!)")
        self._heads = frozenset(word[0] for word in words)
        self._longest = max(map(len, words), default=0)

    def find(self, text: str, start: int) -> re.Match[str] | None:
        """The first of them."""
        return self._pattern.search(text, start)

    def certain(self, text: str, start: int) -> int:
        """Where the longest end of the text begins that may become one of them; the text's length if none may."""
        for at in range(max(start, len(text) - self._longest + 1), len(text)):
            if text[at] in self._heads and any(word.startswith(text[at:]) for word in self._words):
                return at
        return len(text)


class Cursor:
    """Text as it comes, and the pieces found in it.

    Args:
        max_calls: calls beyond this are left out; None is any number.
    """

    __slots__ = ("_blank", "_mark", "_num_calls", "at", "ended", "max_calls", "out", "text")

    def __init__(self, max_calls: int | None = None):
        self.text = ""
        self.at = 0
        self.ended = False
        self.max_calls = max_calls
        self.out: list[Piece] = []
        self._mark: int | None = None
        self._blank: str | None = ""  # blanks that come out only if content follows; None after content
        self._num_calls = 0

    # -- text in -------------------------------------------------------------------------------------------------

    def add(self, text: str) -> None:
        """More text; what was read and is not held is forgotten."""
        keep = self.at if self._mark is None else self._mark
        self.text = self.text[keep:] + text
        self.at -= keep
        if self._mark is not None:
            self._mark = 0

    def more(self) -> Steps[bool]:
        """Wait for more text; False if there is no more."""
        if not self.ended:
            yield
        return not self.ended

    def need(self, size: int) -> Steps[bool]:
        """Wait until so many characters are ahead; False if there are not."""
        while len(self.text) - self.at < size:
            if not (yield from self.more()):
                return False
        return True

    def peek(self) -> Steps[str]:
        """The next character, "" at the end."""
        return self.text[self.at] if (yield from self.need(1)) else ""

    def blanks(self, sink: Callable[[str], object] | None = None) -> Steps[str]:
        """Skip blanks (giving them to `sink`); return the next character, "" at the end."""
        while True:
            end = _BLANK.match(self.text, self.at).end()  # type: ignore[union-attr]  # it matches nothing, too
            if sink is not None and end > self.at:
                sink(self.text[self.at : end])
            self.move(end)
            if end < len(self.text):
                return self.text[end]
            if not (yield from self.more()):
                return ""

    def literal(self, *words: str) -> Steps[str]:
        """Read one of some words, none a prefix of another; return it, or "" where the text goes on otherwise."""
        while True:
            ahead = self.text[self.at : self.at + max(map(len, words))]
            for word in words:
                if ahead.startswith(word):
                    self.move(self.at + len(word))
                    return word
            if not any(word.startswith(ahead) for word in words) or not (yield from self.more()):
                return ""

    def expect(self, *words: str) -> Steps[str]:
        """`literal`, or Malformed."""
        found = yield from self.literal(*words)
        if not found:
            raise Malformed
        return found

    def word(self, pattern: re.Pattern[str], longest: int) -> Steps[str]:
        """Read the characters of a pattern `[...]*`, at most `longest`.

        Raises:
            Malformed: there are none, or more.
        """
        while True:
            found = pattern.match(self.text, self.at)
            end = found.end() if found else self.at
            if end - self.at > longest:
                raise Malformed
            if end < len(self.text) or not (yield from self.more()):
                break
        text = self.text[self.at : end]
        if not text:
            raise Malformed
        self.move(end)
        return text

    def collect(self, markers: Markers, longest: int) -> Steps[tuple[str, str]]:
        """Read up to a marker; return the text and the marker.

        Raises:
            Malformed: the text ends, or is longer; it is left to be read otherwise.
        """
        while True:
            found = markers.find(self.text, self.at)
            if (found.start() if found else markers.certain(self.text, self.at)) - self.at > longest:
                raise Malformed
            if found is not None:
                text = self.text[self.at : found.start()]
                self.move(found.end())
                return text, found[0]
            if not (yield from self.more()):
                raise Malformed

    def until(self, markers: Markers, tell: Callable[[str], object]) -> Steps[str]:
        """Read up to a marker, giving the text to `tell` as it comes; return the marker, "" at the end."""
        while True:
            found = markers.find(self.text, self.at)
            end = found.start() if found else markers.certain(self.text, self.at)
            if end > self.at:
                tell(self.text[self.at : end])
            self.at = found.end() if found else end
            if found:
                return found[0]
            if not (yield from self.more()):
                if self.at < len(self.text):
                    tell(self.text[self.at :])
                    self.at = len(self.text)
                return ""

    def move(self, to: int) -> None:
        """Go on to a position.

        Raises:
            Malformed: more than `MAX_HELD` characters are held then.
        """
        if self._mark is not None and to - self._mark > MAX_HELD:
            self.at = max(self.at, self._mark + MAX_HELD)
            raise Malformed
        self.at = to

    # -- pieces out ----------------------------------------------------------------------------------------------

    def hold(self, back: int = 0) -> None:
        """What is read from here (or from so many characters before) on is held."""
        self._mark = self.at - back

    def drop(self) -> None:
        """What was held is part of a call."""
        self._mark = None

    def back(self) -> None:
        """What was held is yet to be read."""
        if self._mark is not None:
            self.at, self._mark = self._mark, None

    def release(self) -> None:
        """What was held is content."""
        if self._mark is not None:
            held, self._mark = self.text[self._mark : self.at], None
            self.content(held)

    def content(self, text: str) -> None:
        """Text of the answer. Blanks at its beginning, or after a call, wait for what follows."""
        if self._blank is not None:
            self._blank += text
            if len(self._blank) <= MAX_BLANK and not self._blank.strip(" \t\r\n"):
                return
            text, self._blank = self._blank, None
        if text:
            self.out.append(Piece("content", text))

    def reasoning(self, text: str) -> None:
        """Text of the reasoning."""
        self.out.append(Piece("reasoning", text))

    def call(self, name: str) -> None:
        """A call begins; it is certain now."""
        self._mark, self._blank = None, ""
        self._num_calls += 1
        if not self._muted:
            self.out.append(Piece("call", name))

    def arguments(self, text: str) -> None:
        """More of the latest call's arguments."""
        if not self._muted:
            self.out.append(Piece("arguments", text))

    @property
    def _muted(self) -> bool:
        return self.max_calls is not None and self._num_calls > self.max_calls

    def end(self) -> None:
        """Blanks of an answer without any call are content after all."""
        if self._blank and not self._num_calls:
            self.out.append(Piece("content", self._blank))
        self._blank = None


class TextParser:
    """Runs one format over one answer.

    Args:
        read: the format.
        max_calls: calls beyond this are left out; None is any number.
    """

    __slots__ = ("_cursor", "_steps")

    def __init__(self, read: Callable[[Cursor], Steps[None]], max_calls: int | None = None):
        self._cursor = Cursor(max_calls)
        self._steps = read(self._cursor)
        next(self._steps, None)

    def feed(self, text: str) -> list[Piece]:
        """What is certain with more text; neighbours of one kind are joined."""
        if text:
            self._cursor.add(text)
            next(self._steps, None)
        return self._taken()

    def finish(self) -> list[Piece]:
        """The rest, when no more text comes."""
        self._cursor.ended = True
        next(self._steps, None)
        self._cursor.release()
        self._cursor.end()
        return self._taken()

    def _taken(self) -> list[Piece]:
        out, self._cursor.out = self._cursor.out, []
        return joined(out)


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The same pieces with neighbours of one kind joined; each call stays one."""
    if len(pieces) < 2:
        return list(pieces)
    result: list[Piece] = []
    run: list[str] = []
    kind: Kind = pieces[0].kind
    for piece in pieces:
        if piece.kind != kind or kind == "call":
            if run:
                result.append(Piece(kind, "".join(run)))
            run, kind = [], piece.kind
        run.append(piece.text)
    result.append(Piece(kind, "".join(run)))
    return result
