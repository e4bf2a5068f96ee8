"""Items of /v1/responses: what clients send, checked and with ids; and the conversation that they are to the model."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from octavo.errors import InvalidRequestError

Item = dict[str, Any]

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_ROLES = ("user", "assistant", "system", "developer")
_TEXTS = ("input_text", "output_text", "text")
_ITEMS = "Send messages, function calls, their outputs and reasoning."
_STATUSES = ("in_progress", "completed", "incomplete")


def new_item_id(prefix: str) -> str:
    """An id as "msg_..."."""
    return f"{prefix}_{uuid.uuid4().hex}"


def input_items(given: str | Sequence[Any] | None) -> list[Item]:
    """What a request's `input` holds: every item with an id and a type, contents as lists of parts.

    Raises:
        InvalidRequestError: names the item's place and what of it is not taken: images, files, hosted tools, ...
    """
    if isinstance(given, str):
        return [_message({"role": "user", "content": given}, "input")]
    if not given:
        _refuse("input", "is missing or empty", "Send a text, or a list of items.")
    return [_item(item, f"input[{index}]") for index, item in enumerate(given)]


def _item(item: Any, where: str) -> Item:
    if not isinstance(item, Mapping):
        _refuse(where, "is no object", _ITEMS)
    kind = item.get("type", "message")
    if kind == "message":
        return _message(item, where)
    if kind == "function_call":
        names = ("call_id", "name", "arguments")
        made = {"id": _id(item, "fc", where), "type": kind} | {name: _text(item, name, where) for name in names}
        return made | {"status": _status(item, where)}
    if kind == "function_call_output":
        made = {"id": _id(item, "fco", where), "type": kind, "call_id": _text(item, "call_id", where)}
        output = item.get("output")
        if not isinstance(output, str):
            output = _parts(output, "input_text", f"{where}.output")
        return made | {"output": output, "status": _status(item, where)}
    if kind == "reasoning":
        made = {"id": _id(item, "rs", where), "type": kind, "status": _status(item, where)}
        for name, part in (("summary", "summary_text"), ("content", "reasoning_text")):
            given = item.get(name)
            made[name] = [] if given is None else _parts(given, part, f"{where}.{name}")
        return made
    _refuse(f"{where}.type", f"cannot be {str(kind)[:40]!r}", _ITEMS, code="unsupported_value")


def _message(item: Mapping[str, Any], where: str) -> Item:
    role = item.get("role")
    if role not in _ROLES:
        _refuse(f"{where}.role", f"cannot be {str(role)[:40]!r}", f"It is one of {', '.join(_ROLES)}.")
    kind = "output_text" if role == "assistant" else "input_text"
    content = item.get("content")
    made = {"id": _id(item, "msg", where), "type": "message", "role": role, "status": _status(item, where)}
    made["content"] = _parts([content] if isinstance(content, str) else content, kind, f"{where}.content")
    if item.get("phase") is not None:
        made["phase"] = _text(item, "phase", where)
    return made


def _parts(given: Any, kind: str, where: str) -> list[Item]:
    """Parts of text, all of one kind; refusals stay what they are."""
    if not isinstance(given, list):
        _refuse(where, "is neither a text nor a list of parts", 'Send a text, or [{"type": "input_text", "text"}].')
    parts: list[Item] = []
    for index, part in enumerate(given):
        place = f"{where}[{index}]"
        part = {"type": kind, "text": part} if isinstance(part, str) else part
        if not isinstance(part, Mapping):
            _refuse(place, "is no part", 'Send {"type": "input_text", "text": "..."}.')
        if part.get("type") == "refusal" and kind == "output_text":
            parts.append({"type": "refusal", "refusal": _text(part, "refusal", place)})
            continue
        if part.get("type") not in (kind, *(_TEXTS if kind in _TEXTS else ())):
            what = f"cannot be {str(part.get('type'))[:40]!r}"
            _refuse(f"{place}.type", what, f"Only {kind} is taken there.", code="unsupported_value")
        more: Item = {"annotations": []} if kind == "output_text" else {}
        parts.append({"type": kind, "text": _text(part, "text", place), **more})
    return parts


def _text(item: Mapping[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        _refuse(f"{where}.{name}", "is missing or no text", "Send a string.")
    return value


def _id(item: Mapping[str, Any], prefix: str, where: str) -> str:
    value = item.get("id")
    if value is None:
        return new_item_id(prefix)
    if not isinstance(value, str) or not _ID.fullmatch(value):
        _refuse(f"{where}.id", "is no id", "Send up to 128 letters, digits, _ . : and -, or leave it out.")
    return value


def _status(item: Mapping[str, Any], where: str) -> str:
    value = item.get("status") or "completed"
    if value not in _STATUSES:
        _refuse(f"{where}.status", f"cannot be {str(value)[:40]!r}", f"It is one of {', '.join(_STATUSES)}.")
    return str(value)


# -- to the model --------------------------------------------------------------------------------------------------


def chat_messages(items: Sequence[Item], instructions: str | None = None) -> list[dict[str, Any]]:
    """The conversation as chat completions have it.

    Instructions and the system and developer messages at the beginning are one system message, as templates know no
    second one. Reasoning, text and calls that follow each other are one message of the assistant.
    """
    chat: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    names: dict[str, str] = {}
    turn: dict[str, Any] | None = None
    for item in items:
        kind = item["type"]
        if kind == "function_call_output":
            turn = None
            content = item["output"] if isinstance(item["output"], str) else _joined(item["output"])
            message = {"role": "tool", "tool_call_id": item["call_id"], "content": content}
            chat.append(message | ({"name": names[item["call_id"]]} if item["call_id"] in names else {}))
        elif kind == "message" and item["role"] != "assistant":
            turn = None
            _add_said(chat, item)
        else:
            if turn is None or _begins_anew(turn, kind):
                turn = {"role": "assistant", "content": ""}
                chat.append(turn)
            _add_to_turn(turn, item)
            if kind == "function_call":
                names[item["call_id"]] = item["name"]
    return chat


def _add_said(chat: list[dict[str, Any]], item: Item) -> None:
    parts = item["content"]
    content: Any = [{"type": "text", "text": part["text"]} for part in parts] if len(parts) > 1 else _joined(parts)
    role = "user" if item["role"] == "user" else "system"
    if role == "system":
        content = "\n".join(part["text"] for part in parts)
        if chat and all(message["role"] == "system" for message in chat):
            chat[-1]["content"] += "\n\n" + content
            return
    chat.append({"role": role, "content": content})


def _begins_anew(turn: Mapping[str, Any], kind: str) -> bool:
    """Whether something of that kind is not of this message any more."""
    if kind == "function_call":
        return False
    return bool(turn["content"] or turn.get("tool_calls"))


def _add_to_turn(turn: dict[str, Any], item: Item) -> None:
    if item["type"] == "message":
        turn["content"] = _joined(item["content"])
    elif item["type"] == "reasoning":
        text = _joined(item["content"])
        if text:
            turn["reasoning_content"] = turn["reasoning"] = turn.get("reasoning", "") + text
    else:
        function = {"name": item["name"], "arguments": item["arguments"]}
        turn.setdefault("tool_calls", []).append({"id": item["call_id"], "type": "function", "function": function})


def _joined(parts: Sequence[Mapping[str, Any]]) -> str:
    return "".join(part["text"] if "text" in part else part["refusal"] for part in parts)


def _refuse(param: str, what: str, fix: str, code: str | None = None) -> NoReturn:
    raise InvalidRequestError(f"{param} {what}.", fix=fix, param=param, code=code)
