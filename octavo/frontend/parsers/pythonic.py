"""Calls as Python writes them: `[f(a=1), g()]`. They are parsed as literals; nothing is run."""

from __future__ import annotations

import ast
import re
import warnings
from typing import Any

from octavo.frontend.parsers.calls import MAX_NAME, NAME, Offered, dumped
from octavo.frontend.parsers.cursor import Cursor, Malformed, Steps
from octavo.frontend.parsers.json_text import MAX_DEPTH

_QUOTED = {'"': re.compile(r'[^"\\]*'), "'": re.compile(r"[^'\\]*")}
_PLAIN = re.compile(r"[^\"'()\[\]{}]*")
_OPENING = {"(": ")", "[": "]", "{": "}"}
_WORDS = {"true": True, "false": False, "null": None}


def read_pythonic(cursor: Cursor, offered: Offered) -> Steps[None]:
    """A list of calls with keyword arguments that are literals. Each is told when it is complete."""
    yield from cursor.expect("[")
    while True:
        yield from cursor.blanks()
        name = offered.check((yield from cursor.word(NAME, MAX_NAME)))
        parts: list[str] = []
        yield from cursor.expect("(")
        yield from _read_balanced(cursor, parts)
        arguments = _keywords("".join(parts))
        cursor.call(name)
        cursor.arguments(arguments)
        cursor.hold()
        yield from cursor.blanks()
        if (yield from cursor.expect(",", "]")) == "]":
            cursor.drop()
            return


def _read_balanced(cursor: Cursor, parts: list[str]) -> Steps[None]:
    """Up to the parenthesis that closes the one just read."""
    closers = [")"]
    while closers:
        end = _PLAIN.match(cursor.text, cursor.at).end()  # type: ignore[union-attr]  # it matches nothing, too
        if end > cursor.at:
            parts.append(cursor.text[cursor.at : end])
            cursor.move(end)
        char = yield from cursor.peek()
        if not char:
            raise Malformed
        if char in _QUOTED:
            yield from _read_quoted(cursor, char, parts)
            continue
        if char in _OPENING:
            closers.append(_OPENING[char])
            if len(closers) > MAX_DEPTH:
                raise Malformed
        elif char in ")]}" and closers.pop() != char:
            raise Malformed
        parts.append(char)
        cursor.move(cursor.at + len(char))


def _read_quoted(cursor: Cursor, quote: str, parts: list[str]) -> Steps[None]:
    """A string in single or double quotes; triple quotes are none here."""
    parts.append(quote)
    cursor.move(cursor.at + 1)
    while True:
        end = _QUOTED[quote].match(cursor.text, cursor.at).end()  # type: ignore[union-attr]  # it matches nothing, too
        run = cursor.text[cursor.at : end]
        parts.append(run.replace("\n", "\\n").replace("\r", "\\r"))
        cursor.move(end)
        char = yield from cursor.peek()
        if char == "\\":
            if not (yield from cursor.need(2)):
                raise Malformed
            char = cursor.text[cursor.at : cursor.at + 2]
        elif not char:
            raise Malformed
        parts.append(char)
        cursor.move(cursor.at + len(char))
        if char == quote:
            return


def _keywords(text: str) -> str:
    """The JSON object of keyword arguments in Python's words, up to their parenthesis; nothing is run."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes that Python does not know
            call = ast.parse(f"f({text}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            raise Malformed
        values = {keyword.arg: _literal(keyword.value) for keyword in call.keywords}
        if None in values or len(values) != len(call.keywords):
            raise Malformed
        return _checked(dumped(values))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise Malformed from None


def _checked(text: str) -> str:
    if not text.isascii():
        text.encode()  # half a surrogate pair is no text; UnicodeEncodeError is a ValueError
    return text


def _literal(node: ast.expr) -> Any:
    """The value of a literal; JSON's true, false and null are taken too."""
    if isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
        if not all(isinstance(key, str) for key in keys):
            raise Malformed
        return {key: _literal(value) for key, value in zip(keys, node.values, strict=True)}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        value = node.operand.value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return -value
    elif isinstance(node, ast.Constant) and (node.value is None or type(node.value) in (bool, int, float, str)):
        return node.value
    raise Malformed
