"""Tools for models whose chat template knows none: what they need is put into words, in a format's own spelling."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.frontend.parsers.formats import ToolFormat

Message = Mapping[str, Any]


def needs_words(messages: Any, tools: Any) -> bool:
    """Whether anything here is lost on a template that knows no tools."""
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        return False  # refused later
    return bool(tools) or any(
        isinstance(message, Mapping) and (message.get("role") == "tool" or message.get("tool_calls"))
        for message in messages
    )


def in_words(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, tool_format: ToolFormat
) -> list[Message]:
    """The conversation with tools in the system message, calls in their format, and results as the user's words.

    Results that follow one another become one message, as many templates want turns to alternate.
    """
    result: list[Message] = []
    open_results = False
    for message in messages:
        is_result = isinstance(message, Mapping) and message.get("role") == "tool"
        if is_result:
            text = f"<tool_response>\n{_text(message.get('content'))}\n</tool_response>"
            if open_results:
                result[-1] = {"role": "user", "content": f"{result[-1]['content']}\n{text}"}
            else:
                result.append({"role": "user", "content": text})
        elif isinstance(message, Mapping) and message.get("tool_calls"):
            result.append(_with_calls(message, tool_format))
        else:
            result.append(message)
        open_results = is_result
    return _with_system(result, describe(tools, tool_format)) if tools else result


def describe(tools: Sequence[Mapping[str, Any]], tool_format: ToolFormat) -> str:
    """What a model must be told to call functions."""
    functions = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    example = tool_format.write("FUNCTION_NAME", {"PARAMETER": "VALUE"})
    return (
        "You may call functions. Each line here describes one, its parameters as a JSON schema:\n"
        f"<tools>\n{functions}\n</tools>\n"
        f"A call is written like this, with nothing around it:\n{example}\n"
        "Results come back between <tool_response> and </tool_response>. Without need of a function, answer directly."
    )


def _with_calls(message: Message, tool_format: ToolFormat) -> Message:
    parts = [_text(message.get("content"))] if message.get("content") else []
    calls = message["tool_calls"]
    for call in calls if isinstance(calls, list | tuple) else []:
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            parts.append(tool_format.write(str(function.get("name")), _arguments(function.get("arguments"))))
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": "\n".join(parts)}


def _arguments(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
        except (ValueError, RecursionError):
            return {"arguments": value}  # a model's own slip, shown as it is
    return dict(value) if isinstance(value, Mapping) else {}


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list | tuple):
        return "\n".join(str(part.get("text", "")) if isinstance(part, Mapping) else str(part) for part in content)
    return "" if content is None else str(content)


def _with_system(messages: list[Message], words: str) -> list[Message]:
    first = messages[0] if messages else {}
    if isinstance(first, Mapping) and first.get("role") in ("system", "developer"):
        own = _text(first.get("content"))
        return [{**first, "content": f"{own}\n\n{words}" if own else words}, *messages[1:]]
    return [{"role": "system", "content": words}, *messages]
