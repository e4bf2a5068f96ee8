"""Bounds on what clients send as a schema, a pattern or a grammar, before anything reads it as one."""

from __future__ import annotations

import re
from typing import Any, NoReturn

import orjson

from octavo.errors import InvalidRequestError
from octavo.request import StructuredOutputs

MAX_BYTES = 64 << 10
MAX_DEPTH = 64
MAX_PROPERTIES = 2000
MAX_ENUM_VALUES = 2000
MAX_CHOICES = 1000
MAX_REFERENCES = 1000
MAX_PATTERN_CHARS = 4096
MAX_REPETITIONS = 10_000  # of one piece of a pattern, nested counts multiplied
MAX_COUNT = 10_000  # of minItems, maxLength and the like

KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_COUNT = re.compile(r"\{(\d+)(,?)(\d*)\}")
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")


def check_structured_outputs(spec: StructuredOutputs) -> str:
    """Check size and shape; whether it can be compiled, the compiler tells. Returns which kind it is.

    Raises:
        InvalidRequestError: names the value and why.
    """
    if not isinstance(spec, StructuredOutputs):
        _refuse("structured_outputs", spec, "it is no StructuredOutputs", "Build octavo.StructuredOutputs(...).")
    chosen = [kind for kind in KINDS if getattr(spec, kind) is not (False if kind == "json_object" else None)]
    if len(chosen) != 1:
        which = " and ".join(chosen) if chosen else "none of them"
        _refuse("structured_outputs", which, f"exactly one of {', '.join(KINDS)} is taken", "Send one.")
    kind = chosen[0]
    pattern = spec.whitespace_pattern
    if pattern is not None:
        _text("whitespace_pattern", pattern, empty=True)
        check_pattern("whitespace_pattern", pattern)
    value = getattr(spec, kind)
    if kind == "json":
        check_schema("json", load_json("json", value))
    elif kind == "structural_tag":
        _structural_tag(load_json("structural_tag", value))
    elif kind == "choice":
        _choices(value)
    elif kind != "json_object":
        _text(kind, value)
        if kind == "regex":
            check_pattern("regex", value)
    return kind


def load_json(name: str, value: Any) -> Any:
    """A value that may have been sent as its text.

    Raises:
        InvalidRequestError: it is too large, too deep, or no JSON.
    """
    try:
        data = value.encode() if isinstance(value, str) else orjson.dumps(value)
        if len(data) > MAX_BYTES:
            _refuse(name, "that long", f"it has {len(data)} bytes, more than {MAX_BYTES}", "Send a smaller one.")
        return orjson.loads(data)
    except (TypeError, ValueError, UnicodeEncodeError) as error:
        _refuse(name, value, f"it cannot be read as JSON: {error}", "Send an object, or its text.")


def check_schema(name: str, schema: Any) -> None:
    """Check depth, counts, patterns and references of a schema."""
    if not isinstance(schema, dict | bool):
        _refuse(name, schema, "a schema is an object, true or false", "Send an object.")
    properties = references = 0
    open_: list[tuple[Any, int]] = [(schema, 1)]
    while open_:
        node, depth = open_.pop()
        if depth > MAX_DEPTH:
            _refuse(name, "that deep", f"it is nested more than {MAX_DEPTH} deep", "Flatten it.")
        if isinstance(node, list):
            open_ += [(item, depth + 1) for item in node]
        if not isinstance(node, dict):
            continue
        open_ += [(item, depth + 1) for item in node.values()]
        _keywords(name, node)
        properties += len(node["properties"]) if isinstance(node.get("properties"), dict) else 0
        references += "$ref" in node
        if properties > MAX_PROPERTIES:
            _refuse(name, "that large", f"it has more than {MAX_PROPERTIES} properties", "Send a smaller one.")
        if references > MAX_REFERENCES:
            _refuse(name, "that large", f"it has more than {MAX_REFERENCES} references", "Send a smaller one.")


def _keywords(name: str, node: dict[str, Any]) -> None:
    reference = node.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        _refuse(name, f"with $ref {reference[:40]!r}", "only references into itself are followed", "Put it into $defs.")
    if isinstance(node.get("pattern"), str):
        check_pattern(f"{name}: pattern", node["pattern"])
    if isinstance(node.get("enum"), list) and len(node["enum"]) > MAX_ENUM_VALUES:
        _refuse(name, "that large", f"an enum has more than {MAX_ENUM_VALUES} values", "Send fewer.")
    for key in _COUNTS:
        count = node.get(key)
        if isinstance(count, int) and not isinstance(count, bool) and count > MAX_COUNT:
            _refuse(name, f"with {key} {count}", f"counts go up to {MAX_COUNT}", "Choose a smaller one.")


def check_pattern(name: str, pattern: str) -> None:
    """Refuse patterns whose counted repetitions multiply to more than can be built."""
    if len(pattern) > MAX_PATTERN_CHARS:
        _refuse(name, "that long", f"it has more than {MAX_PATTERN_CHARS} characters", "Send a shorter one.")
    most = [1]  # for each open group: the largest repetition inside
    last, at = 1, 0  # the largest repetition inside of the last piece
    while at < len(pattern):
        char = pattern[at]
        counted = _COUNT.match(pattern, at) if char == "{" else None
        if counted is not None:
            last *= max(int(digits[:7]) for digits in (counted[1], counted[3]) if digits)
            at = counted.end()
        elif char == "(":
            most.append(1)
            at += 1
            continue
        elif char == ")" and len(most) > 1:
            last, at = most.pop(), at + 1
        elif char not in "*+?":
            last, at = 1, at + (2 if char == "\\" else 1)
        else:
            at += 1
        most[-1] = max(most[-1], last)
        if last > MAX_REPETITIONS:
            _refuse(name, pattern, f"its repetitions multiply to more than {MAX_REPETITIONS}", "Repeat less.")


def _structural_tag(tag: Any) -> None:
    name, fix = "structural_tag", 'Send {"structures": [{"begin", "schema", "end"}], "triggers": [...]}.'
    structures = tag.get("structures") if isinstance(tag, dict) else None
    triggers = tag.get("triggers") if isinstance(tag, dict) else None
    if not isinstance(structures, list) or not isinstance(triggers, list) or not structures or not triggers:
        _refuse(name, tag, "it needs structures and triggers", fix)
    if len(structures) > MAX_CHOICES or not all(isinstance(trigger, str) and trigger for trigger in triggers):
        _refuse(name, tag, "it has too many structures, or a trigger that is no text", fix)
    for structure in structures:
        begin = structure.get("begin") if isinstance(structure, dict) else None
        if not isinstance(begin, str) or not isinstance(structure.get("end"), str):
            _refuse(name, structure, "a structure has a begin and an end", fix)
        if not any(begin.startswith(trigger) for trigger in triggers):
            _refuse(name, begin, "no trigger begins it", "List its beginning among the triggers.")
        check_schema(name, structure.get("schema"))


def _choices(choices: Any) -> None:
    if not isinstance(choices, tuple | list) or not choices:
        _refuse("choice", choices, "it is no list of texts", 'Send texts, as ["yes", "no"].')
    if len(choices) > MAX_CHOICES:
        _refuse("choice", f"{len(choices)} texts", f"at most {MAX_CHOICES} are taken", "Send fewer.")
    for choice in choices:
        _text("choice", choice)
    if sum(map(len, choices)) > MAX_BYTES // 4:
        _refuse("choice", "that long", f"they have more than {MAX_BYTES // 4} characters in all", "Send fewer.")


def _text(name: str, value: Any, *, empty: bool = False) -> None:
    if not isinstance(value, str) or (not value and not empty):
        _refuse(name, value, "it is no text, or an empty one", "Send a text.")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        _refuse(name, value, "it holds characters that are no valid Unicode", "Send well-formed UTF-8.")
    if size > MAX_BYTES:
        _refuse(name, "that long", f"it has {size} bytes, more than {MAX_BYTES}", "Send a shorter one.")


def _refuse(name: str, value: Any, reason: str, fix: str) -> NoReturn:
    shown = value if isinstance(value, str) and value.startswith(("that ", "with ", "none ")) else repr(value)[:60]
    raise InvalidRequestError(
        f"structured_outputs: {name} cannot be {shown}: {reason}.", fix=fix, param="structured_outputs"
    )
