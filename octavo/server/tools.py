"""`tools` and `tool_choice` of a request: checked, and as the constraint that keeps a required call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, cast

import orjson

from octavo.errors import InvalidRequestError
from octavo.grammar.structured import from_json_schema
from octavo.request import StructuredOutputs

MAX_TOOLS = 128
MAX_TOOLS_BYTES = 256 << 10
MAX_CALLS = 128  # of one message
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_EMPTY: dict[str, Any] = {"type": "object", "properties": {}}
_HOW = 'It is "none", "auto", "required" or {"type": "function", "function": {"name": "..."}}.'

Mode = Literal["none", "auto", "required", "named"]


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """What a request lets the model call.

    Attributes:
        tools: as the template gets them; those that `allowed_tools` leaves out are not among them.
        schemas: of the parameters, by the names that may be called.
        strict: names whose arguments must keep their schema although calling is free.
        parallel: whether one answer may call several times.
    """

    tools: Sequence[Mapping[str, Any]]
    schemas: Mapping[str, Mapping[str, Any]]
    strict: frozenset[str]
    mode: Mode
    name: str
    parallel: bool

    @property
    def shown(self) -> Sequence[Mapping[str, Any]] | None:
        """What the template gets: None where nothing may be called."""
        return self.tools if self.mode != "none" else None

    def constraint(self) -> StructuredOutputs | None:
        """What the whole answer must be: a named function's arguments, or an array of calls; None where it is free."""
        if self.mode == "named":
            return from_json_schema(closed(self.schemas[self.name]), any_whitespace=False)
        if self.mode == "required":
            schemas = {name: closed(schema) for name, schema in self.schemas.items()}
            return from_json_schema(calls_schema(schemas, parallel=self.parallel), any_whitespace=False)
        return None


_OPEN = {
    *("additionalProperties", "patternProperties", "propertyNames", "unevaluatedProperties", "minProperties"),
    *("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "not", "if", "dependentSchemas", "dependentRequired"),
}
"""What may speak of properties that `properties` does not name."""


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a function's parameters, with no others than it names.

    Schemas that clients make of functions' signatures seldom say so, while functions fail for parameters that they do
    not have, and small models write some. A schema that speaks of further properties stays as it is.
    """
    properties, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(properties, Mapping) or schema.get("type") != "object" or _OPEN & set(schema):
        return dict(schema)
    if not isinstance(required, list) or any(name not in list(properties) for name in required):
        return dict(schema)
    return {**schema, "additionalProperties": False}


def calls_schema(schemas: Mapping[str, Mapping[str, Any]], *, parallel: bool) -> dict[str, Any]:
    """The schema of an array of calls: `{"name": ..., "parameters": {...}}` each."""
    shared: dict[str, Any] = {}
    kinds = []
    for rank, (name, schema) in enumerate(schemas.items()):
        parameters: dict[str, Any] = dict(schema)
        if _has_references(schema):  # they count from the root, which this schema is no longer
            key = f"tool{rank}"
            shared[key] = _moved(schema, f"#/$defs/{key}")
            parameters = {"$ref": f"#/$defs/{key}"}
        kinds.append(
            {
                "type": "object",
                "properties": {"name": {"enum": [name]}, "parameters": parameters},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    items = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    array = {"type": "array", "minItems": 1, "maxItems": MAX_CALLS if parallel else 1, "items": items}
    return array | ({"$defs": shared} if shared else {})


def _has_references(schema: Any) -> bool:
    if isinstance(schema, Mapping):
        return "$ref" in schema or any(map(_has_references, schema.values()))
    return isinstance(schema, list) and any(map(_has_references, schema))


def _moved(schema: Any, root: str) -> Any:
    """The schema with its references into itself counted from another root."""
    if isinstance(schema, list):
        return [_moved(item, root) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {key: _moved(value, root) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved


def tool_request(tools: Any, tool_choice: Any, parallel_tool_calls: bool | None) -> ToolRequest | None:
    """Check what a body says about tools; None if it offers none.

    Args:
        tools: functions, as OpenAI's API has them.
        tool_choice: "none", "auto" (as None), "required", or an object that names one function or several.
        parallel_tool_calls: None is true.

    Raises:
        InvalidRequestError: names the field.
    """
    if not tools:
        if tool_choice not in (None, "none", "auto"):
            _refuse("tool_choice", "goes with tools only", "Send tools, or leave it out.")
        return None
    if len(tools) > MAX_TOOLS:
        _refuse("tools", f"has {len(tools)} entries", f"At most {MAX_TOOLS} are taken.")
    if _num_bytes(tools) > MAX_TOOLS_BYTES:
        _refuse("tools", "is too large", f"At most {MAX_TOOLS_BYTES} bytes are taken.")
    schemas: dict[str, Mapping[str, Any]] = {}
    strict = set()
    for index, tool in enumerate(tools):
        name, schema, is_strict = _function(tool, f"tools[{index}]")
        if name in schemas:
            _refuse(
                f"tools[{index}].function.name", f"{name!r} is there twice", "Give each function a name of its own."
            )
        schemas[name] = schema
        if is_strict:
            strict.add(name)
    mode, names = _choice(tool_choice, schemas)
    return ToolRequest(
        tools=[_for_template(tool) for tool in tools if mode == "named" or tool["function"]["name"] in names],
        schemas={name: schemas[name] for name in schemas if name in names},
        strict=frozenset(strict & names),
        mode=mode,
        name=next(iter(names)) if mode == "named" else "",
        parallel=parallel_tool_calls is not False,
    )


def _num_bytes(tools: Any) -> int:
    try:
        return len(orjson.dumps(tools))
    except TypeError as error:
        _refuse("tools", f"cannot be read: {error}", "Keep whole numbers within 64 bits.")


def _function(tool: Any, where: str) -> tuple[str, Mapping[str, Any], bool]:
    """Name, schema of the parameters, and whether it is strict."""
    if not isinstance(tool, Mapping) or tool.get("type", "function") != "function":
        kind = tool.get("type") if isinstance(tool, Mapping) else type(tool).__name__
        _refuse(f"{where}.type", f"cannot be {str(kind)[:40]!r}", 'Only {"type": "function", ...} is taken.')
    function = tool.get("function")
    if not isinstance(function, Mapping):
        _refuse(f"{where}.function", "is missing", 'Send {"name", "description", "parameters"}.')
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        _refuse(f"{where}.function.name", f"cannot be {str(name)[:80]!r}", "It has 1 to 64 of a-z, A-Z, 0-9, _ and -.")
    if not isinstance(function.get("description"), str | None):
        _refuse(f"{where}.function.description", "is no text", "Send a string.")
    if not isinstance(function.get("strict"), bool | None):
        _refuse(f"{where}.function.strict", "is no boolean", "Send true or false.")
    schema = function.get("parameters")
    if schema is None:
        schema = _EMPTY
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        _refuse(f"{where}.function.parameters", "is no schema of an object", 'Send {"type": "object", ...}.')
    properties = schema.get("properties")
    if properties is not None and not isinstance(properties, Mapping):
        _refuse(f"{where}.function.parameters", "has properties that are no object", "Correct the schema.")
    return name, schema if "type" in schema else {"type": "object", **schema}, bool(function.get("strict"))


def _for_template(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Templates go through `parameters.properties` without a look whether they are there."""
    function = dict(tool["function"])
    parameters = function.get("parameters") or _EMPTY
    function["parameters"] = {"type": "object", "properties": {}} | parameters
    function["description"] = function.get("description") or ""
    return {**tool, "type": "function", "function": function}


def _choice(choice: Any, schemas: Mapping[str, Any]) -> tuple[Mode, set[str]]:
    """How to choose, and among which names."""
    everything = set(schemas)
    if choice is None:
        return "auto", everything
    if isinstance(choice, str):
        if choice in ("none", "auto", "required"):
            return cast(Mode, choice), everything
        _refuse("tool_choice", f"cannot be {choice[:40]!r}", _HOW)
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind == "function":
        return "named", {_known(choice, schemas)}
    if kind == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        listed = allowed.get("tools") if isinstance(allowed, Mapping) else None
        if not isinstance(listed, list) or not listed or allowed.get("mode") not in ("auto", "required"):
            _refuse("tool_choice", "has no list of allowed tools with a mode", 'Send {"mode": "auto", "tools": [...]}.')
        return allowed["mode"], {_known(tool, schemas) for tool in listed}
    _refuse("tool_choice", "cannot be that", _HOW)


def _known(choice: Any, schemas: Mapping[str, Any]) -> str:
    function = choice.get("function", choice) if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or name not in schemas:
        _refuse("tool_choice", f"names {str(name)[:80]!r}, which is no tool of this request", "Name one of tools.")
    return name


def check_tool_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Check calls and results of earlier turns; the template checks the rest.

    Raises:
        InvalidRequestError: names the message.
    """
    for index, message in enumerate(messages):
        if message.get("role") == "tool" and not isinstance(message.get("tool_call_id"), str):
            _refuse(f"messages[{index}].tool_call_id", "is missing", "Send the id of the call that this answers.")
        calls = message.get("tool_calls")
        if calls is None:
            continue
        if not isinstance(calls, list) or len(calls) > MAX_CALLS:
            _refuse(f"messages[{index}].tool_calls", f"is no list of at most {MAX_CALLS} calls", "Correct it.")
        for rank, call in enumerate(calls):
            function = call.get("function") if isinstance(call, Mapping) else None
            if (
                not isinstance(function, Mapping)
                or not isinstance(function.get("name"), str)
                or not isinstance(function.get("arguments", ""), str | Mapping)
            ):
                where = f"messages[{index}].tool_calls[{rank}]"
                _refuse(where, "is no call", 'Send {"id", "type": "function", "function": {"name", "arguments"}}.')


def _refuse(param: str, what: str, fix: str) -> NoReturn:
    raise InvalidRequestError(f"{param} {what}.", fix=fix, param=param)
