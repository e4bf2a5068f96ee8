"""How the formats write calls: small readers that the descriptions of `octavo.frontend.parsers.formats` choose from.

A reader begins after the format's marker, holding from it on. A call is certain once its name and the beginning of its
arguments are there; before that the reader may raise `Malformed` and the text is content, after that the arguments
stream and what breaks off ends the call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.frontend.parsers.cursor import MAX_HELD, Cursor, Malformed, Markers, Steps
from octavo.frontend.parsers.json_text import read_string, read_value, string_of

NAME = re.compile(r"[A-Za-z0-9_.-]*")
_KEY = re.compile(r"[^<>\s]*")
MAX_NAME = 128
_MAX_LINE = 64
_CALL_KEYS = {"name", "arguments", "parameters", "id", "type", "index"}
_VALUE_END = Markers(["</parameter>"])
_LINE_END = Markers(["\n"])


@dataclass(frozen=True, slots=True)
class Offered:
    """What an answer may call.

    Attributes:
        tools: JSON schema of the parameters by function name.
        known_only: a call of any other name is text: for formats that no marker tells from plain JSON.
    """

    tools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    known_only: bool = False

    def check(self, name: str) -> str:
        """The name, or Malformed."""
        if not name or len(name) > MAX_NAME or not NAME.fullmatch(name) or (self.known_only and name not in self.tools):
            raise Malformed
        return name


# -- JSON: {"name": ..., "arguments": {...}} -----------------------------------------------------------------------


def read_json_calls(cursor: Cursor, offered: Offered) -> Steps[None]:
    """An object with name and arguments, or an array of such objects."""
    if (yield from cursor.blanks()) != "[":
        yield from _read_call_object(cursor, offered)
        return
    cursor.move(cursor.at + 1)
    while True:
        yield from cursor.blanks()
        yield from _read_call_object(cursor, offered)
        cursor.hold()
        yield from cursor.blanks()
        if (yield from cursor.expect(",", "]")) == "]":
            cursor.drop()
            return


def read_json_calls_apart(cursor: Cursor, offered: Offered) -> Steps[None]:
    """As `read_json_calls`, several with a semicolon, a comma or blanks between them."""
    yield from read_json_calls(cursor, offered)
    while True:
        cursor.hold()
        yield from cursor.blanks()
        yield from cursor.literal(";", ",")
        if (yield from cursor.blanks()) != "{":
            raise Malformed
        yield from _read_call_object(cursor, offered)


def _read_call_object(cursor: Cursor, offered: Offered) -> Steps[None]:
    """One object; its keys may come in any order, other keys than those of calls make it none."""
    yield from cursor.expect("{")
    name = arguments = None
    begun = False
    while True:
        yield from cursor.blanks()
        key = yield from _collected_string(cursor)
        yield from cursor.blanks()
        yield from cursor.expect(":")
        yield from cursor.blanks()
        if key == "name" and name is None:
            name = offered.check((yield from _collected_string(cursor)))
        elif key in ("arguments", "parameters") and not begun and arguments is None:
            if name is not None:
                begun = True
                yield from read_arguments(cursor, name)
            else:
                arguments = yield from _collected_arguments(cursor)
        elif key in _CALL_KEYS or begun:
            yield from read_value(cursor, _nowhere)
        else:
            raise Malformed
        yield from cursor.blanks()
        if (yield from cursor.expect(",", "}")) == "}":
            break
    if name is None:
        raise Malformed
    if not begun:
        cursor.call(name)
        cursor.arguments(arguments or "{}")


def _nowhere(text: str) -> None:
    pass


def read_arguments(cursor: Cursor, name: str) -> Steps[None]:
    """A call's arguments: an object, which streams; a string that holds one; or null."""
    if (yield from cursor.peek()) == "{":
        cursor.call(name)
        yield from read_value(cursor, cursor.arguments)
    else:
        arguments = yield from _collected_arguments(cursor)
        cursor.call(name)
        cursor.arguments(arguments)


def _collected_arguments(cursor: Cursor) -> Steps[str]:
    parts: list[str] = []
    char = yield from cursor.peek()
    if char not in ("{", '"', "n"):
        raise Malformed
    yield from read_value(cursor, parts.append)
    text = "".join(parts)
    if char == "n":
        return "{}"
    if char == '"':
        text = string_of(text)
        try:
            inside = json.loads(text or "{}")
        except (ValueError, RecursionError):
            raise Malformed from None
        if not isinstance(inside, dict):
            raise Malformed
    return text or "{}"


def _collected_string(cursor: Cursor) -> Steps[str]:
    parts: list[str] = []
    yield from read_string(cursor, parts.append)
    return string_of("".join(parts))


# -- name, then arguments ------------------------------------------------------------------------------------------


def read_mistral(cursor: Cursor, offered: Offered) -> Steps[None]:
    """An array of calls as in JSON; or `name{...}`, `name[ARGS]{...}`, `name[CALL_ID]id[ARGS]{...}`."""
    if (yield from cursor.blanks()) == "[":
        yield from read_json_calls(cursor, offered)
        return
    name = offered.check((yield from cursor.word(NAME, MAX_NAME)))
    if (yield from cursor.blanks()) == "[":
        if (yield from cursor.expect("[CALL_ID]", "[ARGS]")) == "[CALL_ID]":
            yield from cursor.word(NAME, MAX_NAME)
            yield from cursor.expect("[ARGS]")
        yield from cursor.blanks()
    yield from read_arguments(cursor, name)


_DEEPSEEK_BEGIN, _DEEPSEEK_SEP, _DEEPSEEK_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_DEEPSEEK_LAST = "<｜tool▁calls▁end｜>"
_FENCE = "```"


def read_deepseek(cursor: Cursor, offered: Offered) -> Steps[None]:
    """Calls between markers of their own; each as `function<sep>name`, a line with a fence, and JSON (V3, R1), or as
    `name<sep>` and JSON (V3.1 and later)."""
    yield from cursor.blanks()
    yield from cursor.expect(_DEEPSEEK_BEGIN)
    while True:
        yield from _read_deepseek_call(cursor, offered)
        cursor.hold()
        yield from cursor.blanks()
        yield from cursor.expect(_DEEPSEEK_END)
        cursor.hold()
        yield from cursor.blanks()
        if (yield from cursor.expect(_DEEPSEEK_BEGIN, _DEEPSEEK_LAST)) == _DEEPSEEK_LAST:
            cursor.drop()
            return


def _read_deepseek_call(cursor: Cursor, offered: Offered) -> Steps[None]:
    head = yield from cursor.word(NAME, MAX_NAME)
    yield from cursor.expect(_DEEPSEEK_SEP)
    if (yield from cursor.blanks()) == "{":
        yield from read_arguments(cursor, offered.check(head))
        return
    line, _ = yield from cursor.collect(_LINE_END, MAX_NAME)
    name = offered.check(line.strip())
    yield from cursor.blanks()
    fenced = yield from cursor.literal(_FENCE)
    if fenced:
        yield from cursor.collect(_LINE_END, _MAX_LINE)
        yield from cursor.blanks()
    yield from read_arguments(cursor, name)
    if fenced:
        cursor.hold()
        yield from cursor.blanks()
        yield from cursor.expect(_FENCE)
        cursor.drop()


# -- Qwen3-Coder: <function=name><parameter=key>value</parameter></function> ------------------------------------


def read_qwen3(cursor: Cursor, offered: Offered) -> Steps[None]:
    """JSON as in hermes, or elements for functions and their parameters, each told when it is complete."""
    if (yield from cursor.blanks()) == "{":
        yield from _read_call_object(cursor, offered)
        return
    yield from cursor.expect("<function=")
    name = offered.check((yield from cursor.word(NAME, MAX_NAME)))
    yield from cursor.expect(">")
    yield from cursor.blanks()
    schema = offered.tools.get(name, {})
    before = "{"
    while True:
        tag = yield from cursor.expect("<parameter=", "</function>")
        if tag == "</function>":
            break
        key = yield from cursor.word(_KEY, MAX_NAME)
        yield from cursor.expect(">")
        if before == "{":
            cursor.call(name)
        text, _ = yield from cursor.collect(_VALUE_END, MAX_HELD)
        cursor.arguments(f"{before}{dumped(key)}: {dumped(typed(_unpadded(text), _property(schema, key)))}")
        before = ", "
        yield from cursor.blanks()
    if before == "{":
        cursor.call(name)
        cursor.arguments("{")
    cursor.arguments("}")


def _unpadded(text: str) -> str:
    """Without the one line break on either side that the format puts there."""
    text = text[1:] if text.startswith("\n") else text
    return text[:-1] if text.endswith("\n") else text


def _property(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    properties = schema.get("properties")
    found = properties.get(key) if isinstance(properties, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def typed(text: str, schema: Mapping[str, Any]) -> Any:
    """A value written as bare text: what the schema says it is, else JSON if it is any, else the text."""
    kinds = schema.get("type")
    allowed = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []
    if allowed == ["string"]:
        return text
    try:
        value = json.loads(text, parse_constant=_refuse)
        dumped(value)
    except (ValueError, RecursionError):
        words = {"True": True, "False": False, "None": None}
        return words.get(text.strip(), text) if "string" not in allowed else text
    return text if isinstance(value, str) or ("string" in allowed and not _is_of(value, allowed)) else value


def _refuse(word: str) -> None:
    raise ValueError(word)


def _is_of(value: Any, kinds: list[Any]) -> bool:
    names = {bool: "boolean", int: "integer", float: "number", dict: "object", list: "array", type(None): "null"}
    name = names.get(type(value), "")
    return name in kinds or (name == "integer" and "number" in kinds)


def dumped(value: Any) -> str:
    """Compact enough, and JSON for sure."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
