"""What a client asked for, as a grammar that llguidance reads. Runs in the compiler's process only."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, cast

from octavo.request import StructuredOutputs

_META = frozenset("\\.+*?()|[]{}^$#&-~/")


def translate(spec: StructuredOutputs, special_tokens: Collection[str]) -> str:
    """The grammar's text.

    Args:
        special_tokens: spellings of control tokens; a structural tag's trigger may be one.

    Raises:
        ValueError: it cannot be translated; says why.
    """
    from llguidance import LLMatcher, regex_to_lark

    if spec.json is not None:
        schema = json.loads(spec.json) if isinstance(spec.json, str) else spec.json
        return _of_schema(schema, spec)
    if spec.json_object:
        return _of_schema({"type": "object"}, spec)
    if spec.regex is not None:
        pattern = regex_to_lark(_unanchored(spec.regex), "d")  # a digit is 0 to 9
        return str(LLMatcher.grammar_from_lark(f"start: /{pattern}/"))
    if spec.choice is not None:
        return LLMatcher.grammar_from_regex("|".join(map(_literal, spec.choice)))
    if spec.grammar is not None:
        return LLMatcher.grammar_from_lark(_as_lark(spec.grammar))
    return _of_tag(
        json.loads(spec.structural_tag) if isinstance(spec.structural_tag, str) else spec.structural_tag, special_tokens
    )


def _of_schema(schema: Any, spec: StructuredOutputs) -> str:
    from llguidance import LLMatcher

    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    options: dict[str, Any] = {"lenient": False, "coerce_one_of": True}
    if spec.whitespace_pattern:
        options["whitespace_pattern"] = spec.whitespace_pattern
    elif spec.disable_any_whitespace or spec.whitespace_pattern == "":
        options["whitespace_flexible"] = False
    schema = {name: value for name, value in schema.items() if name != "x-guidance"}  # options are not the client's
    return str(LLMatcher.grammar_from_json_schema(schema, overrides=cast(Any, options)))


def _unanchored(pattern: str) -> str:
    """Without the anchors around it, which are implied."""
    if pattern.endswith("$") and (len(pattern) - len(pattern[:-1].rstrip("\\"))) % 2:
        pattern = pattern[:-1]
    return pattern.removeprefix("^")


def _literal(text: str) -> str:
    return "".join("\\" + char if char in _META else char for char in text)


def _as_lark(grammar: str) -> str:
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return str(any_to_lark(grammar))
    except Exception as error:  # the converter raises plain Exception for what it cannot read
        raise ValueError(str(error)) from None


def _of_tag(tag: Any, special_tokens: Collection[str]) -> str:
    """Free text with sections that begin with a trigger; each keeps its schema up to its end."""
    from llguidance import StructTag

    tags, special = [], False
    for structure in tag["structures"]:
        trigger = max((each for each in tag["triggers"] if structure["begin"].startswith(each)), key=len)
        special |= trigger in special_tokens
        schema = structure["schema"] if isinstance(structure["schema"], dict) else {}
        tags.append(StructTag(trigger=trigger, begin=structure["begin"], grammar=schema, end=structure["end"]))
    return str(StructTag.to_grammar(tags, assume_special=special))
