"""`StructuredOutputs` from what clients send: schemas, `response_format`, vLLM's object and its older fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from octavo.errors import InvalidRequestError
from octavo.request import StructuredOutputs

_LEGACY = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "guided_json_object": "json_object",
    "guided_whitespace_pattern": "whitespace_pattern",
}


def from_json_schema(schema: dict[str, Any] | bool, *, any_whitespace: bool = True) -> StructuredOutputs:
    """The answer is JSON that the schema validates; without `any_whitespace`, in its shortest spelling."""
    return StructuredOutputs(json=schema, disable_any_whitespace=not any_whitespace)


def from_response_format(value: Mapping[str, Any] | None) -> StructuredOutputs | None:
    """OpenAI's `response_format`: text, json_object, json_schema; and vLLM's structural_tag.

    Raises:
        InvalidRequestError: it is of no known type, or lacks its schema.
    """
    kind = "text" if value is None else value.get("type")
    if value is None or kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutputs(json_object=True)
    if kind == "json_schema":
        described = value.get("json_schema")
        schema = described.get("schema") if isinstance(described, Mapping) else None
        if not isinstance(schema, dict | bool):
            raise _refuse("it has no schema", 'Send {"type": "json_schema", "json_schema": {"name", "schema"}}.')
        return StructuredOutputs(json=schema)
    if kind == "structural_tag":
        return StructuredOutputs(structural_tag={key: each for key, each in value.items() if key != "type"})
    raise _refuse(f"its type is {str(kind)[:40]!r}", "Use text, json_object, json_schema or structural_tag.")


def from_body(
    response_format: Mapping[str, Any] | None, structured: Mapping[str, Any] | None, legacy: Mapping[str, Any]
) -> StructuredOutputs | None:
    """What a request body asks for, by any of the three ways; two at once are refused.

    Args:
        structured: vLLM's `structured_outputs`.
        legacy: its `guided_*` fields by name; None where one was not sent.
    """
    found = [
        each for each in (from_response_format(response_format), _convert(structured, "structured_outputs")) if each
    ]
    renamed = {_LEGACY[name]: value for name, value in legacy.items() if value is not None}
    if renamed:
        found.append(_convert(renamed, "guided_" + next(iter(renamed))) or StructuredOutputs())
    if len(found) > 1:
        raise InvalidRequestError(
            "structured_outputs cannot go with response_format or a guided_ field: the answer has one form.",
            fix="Send one of them.",
            param="structured_outputs",
        )
    return found[0] if found else None


def _convert(value: Mapping[str, Any] | None, param: str) -> StructuredOutputs | None:
    if value is None:
        return None
    given = {name: each for name, each in value.items() if each is not None}
    unknown = sorted(set(given) - set(StructuredOutputs.__struct_fields__))
    if unknown:
        raise InvalidRequestError(
            f"{param} cannot have {unknown[0][:40]!r}.",
            fix=f"Its fields are {', '.join(StructuredOutputs.__struct_fields__)}.",
            param=param,
        )
    try:
        return msgspec.convert(given, StructuredOutputs)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"{param} is not usable: {error}.", fix="Correct its type.", param=param) from None


def _refuse(reason: str, fix: str) -> InvalidRequestError:
    return InvalidRequestError(f"response_format cannot be used: {reason}.", fix=fix, param="response_format")
