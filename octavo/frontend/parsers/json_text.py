"""One JSON value (RFC 8259) read from a cursor as it comes, and checked while it does.

The text is passed on as it is, but for control characters inside strings, which models write and JSON forbids: they
become escapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from octavo.frontend.parsers.cursor import Cursor, Malformed, Steps

MAX_DEPTH = 64
_MAX_SCALAR = 400
_RUN = re.compile(r'[^"\\]*')
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_SCALAR = re.compile(r"[-+.0-9A-Za-z]*")
_VALID_SCALAR = re.compile(r"(?:-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null)")
_CONTROLS = {code: json.dumps(chr(code))[1:-1] for code in range(32)}
_CLOSING = {"{": "}", "[": "]"}
Sink = Callable[[str], object]


def read_value(cursor: Cursor, sink: Sink) -> Steps[None]:
    """Read one value, giving its text to `sink`.

    Raises:
        Malformed: it is not JSON, breaks off, or is deeper than `MAX_DEPTH`. The cursor stands where it went wrong.
    """
    closers: list[str] = []
    while True:
        char = yield from cursor.blanks(sink)
        if char in ("{", "["):
            if len(closers) == MAX_DEPTH:
                raise Malformed
            closers.append(_CLOSING[char])
            _take(cursor, char, sink)
            if (yield from cursor.blanks(sink)) != closers[-1]:
                if char == "{":
                    yield from _read_key(cursor, sink)
                continue
        elif char == '"':
            yield from read_string(cursor, sink)
        else:
            yield from _read_scalar(cursor, sink)
        if not (yield from _read_rest(cursor, closers, sink)):
            return


def _read_rest(cursor: Cursor, closers: list[str], sink: Sink) -> Steps[bool]:
    """After a value: close what ends here; True if another value follows."""
    while closers:
        char = yield from cursor.blanks(sink)
        if char == closers[-1]:
            closers.pop()
            _take(cursor, char, sink)
        elif char == ",":
            _take(cursor, char, sink)
            if closers[-1] == "}":
                yield from cursor.blanks(sink)
                yield from _read_key(cursor, sink)
            return True
        else:
            raise Malformed
    return False


def _read_key(cursor: Cursor, sink: Sink) -> Steps[None]:
    yield from read_string(cursor, sink)
    if (yield from cursor.blanks(sink)) != ":":
        raise Malformed
    _take(cursor, ":", sink)


def read_string(cursor: Cursor, sink: Sink) -> Steps[None]:
    """Read one string with its quotes; errors as of `read_value`."""
    if (yield from cursor.peek()) != '"':
        raise Malformed
    _take(cursor, '"', sink)
    while True:
        end = _RUN.match(cursor.text, cursor.at).end()  # type: ignore[union-attr]  # it matches nothing, too
        if end > cursor.at:
            run = cursor.text[cursor.at : end]
            cursor.move(end)
            sink(run if run.isprintable() else run.translate(_CONTROLS))
        char = yield from cursor.peek()
        if char == '"':
            _take(cursor, char, sink)
            return
        if char == "\\":
            yield from _read_escape(cursor, sink)
        elif not char:
            raise Malformed


def _read_escape(cursor: Cursor, sink: Sink) -> Steps[None]:
    if not (yield from cursor.need(2)) or not (yield from cursor.need(6 if cursor.text[cursor.at + 1] == "u" else 2)):
        raise Malformed
    found = _ESCAPE.match(cursor.text, cursor.at)
    if found is None:
        raise Malformed
    _take(cursor, found[0], sink)


def _read_scalar(cursor: Cursor, sink: Sink) -> Steps[None]:
    text = yield from cursor.word(_SCALAR, _MAX_SCALAR)
    if not _VALID_SCALAR.fullmatch(text):
        cursor.at -= len(text)
        raise Malformed
    sink(text)


def _take(cursor: Cursor, text: str, sink: Sink) -> None:
    cursor.move(cursor.at + len(text))
    sink(text)


def string_of(text: str) -> str:
    """The value of a JSON string that was read. Raises Malformed if it holds half a surrogate pair."""
    value: str = json.loads(text)
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise Malformed
    return value
