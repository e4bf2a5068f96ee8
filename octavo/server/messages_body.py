"""Bodies of Anthropic's Messages API, and the chat completion that answers each.

Fields that Octavo does not know are ignored, as in its other APIs; what it knows and cannot do is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NoReturn

import msgspec
import orjson

from octavo.errors import InvalidRequestError
from octavo.server.protocol import ChatBody

MAX_BLOCKS = 4096
"""Blocks of content in all messages together."""
_REFUSED = {
    "mcp_servers": "Call the servers yourself, and offer what they can as tools.",
    "container": "Run code yourself, and offer it as a tool.",
    "context_management": "Leave out yourself what is too old.",
}


class ThinkingOptions(msgspec.Struct, kw_only=True):
    """Whether to think, for models whose chat template knows how to.

    Attributes:
        budget_tokens: taken, but it bounds nothing: `max_tokens` bounds thoughts and answer together.
    """

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class ToolChoice(msgspec.Struct, kw_only=True):
    """Whether and what to call."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class PromptBody(msgspec.Struct, kw_only=True):
    """What is to be answered, of POST /v1/messages/count_tokens.

    Attributes:
        system: a text, or blocks of text.
        messages: of "user" and "assistant"; if the last is the assistant's, the answer goes on with it.
        tools: each with a name, a description and an input_schema.
        thinking: without it the model is told not to think, where its chat template can tell it.
        output_config: `format` of type json_schema bounds the answer.
    """

    model: str | None = None
    messages: list[dict[str, Any]] | None = None
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingOptions | None = None
    output_config: dict[str, Any] | None = None
    mcp_servers: Any = None
    container: Any = None
    context_management: Any = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def thinks(self) -> bool:
        """Whether thoughts are wanted."""
        return self.thinking is not None and self.thinking.type != "disabled"

    def check(self) -> None:
        """Refuse what cannot be served; the chat completion is checked again by the validator of all.

        Raises:
            InvalidRequestError: names the field.
        """
        if not self.messages:
            _refuse("messages", "are missing", "Send at least one.")
        for name, fix in _REFUSED.items():
            if getattr(self, name):
                _refuse(name, "is not supported here", fix)

    def chat_fields(self, template: str) -> dict[str, Any]:
        """Fields of `ChatBody`.

        Args:
            template: the model's chat template.
        """
        messages = list(_chat_messages(self.messages or [], self.system))
        variables = dict(self.chat_template_kwargs or {})
        if "enable_thinking" in template:
            variables.setdefault("enable_thinking", self.thinks)
        choice = self.tool_choice
        going_on = messages[-1]["role"] == "assistant"
        return {
            "model": self.model,
            "messages": messages,
            "tools": None if self.tools is None else [_chat_tool(tool, i) for i, tool in enumerate(self.tools)],
            "tool_choice": None if choice is None else _chat_choice(choice),
            "parallel_tool_calls": False if choice is not None and choice.disable_parallel_tool_use else None,
            "response_format": _response_format(self.output_config),
            "chat_template_kwargs": variables or None,
            "include_reasoning": self.thinks,
            "continue_final_message": going_on or None,
            "add_generation_prompt": False if going_on else None,
        }


class MessagesBody(PromptBody, kw_only=True):
    """POST /v1/messages.

    Attributes:
        max_tokens: most tokens of the answer, thoughts included.
        stop_sequences: texts that end the answer and are left out of it.
        metadata, service_tier: taken, without effect.
    """

    max_tokens: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    cache_salt: str | None = None
    priority: int | None = None

    def check(self) -> None:
        """As of the base class."""
        super().check()
        if self.max_tokens is None:
            _refuse("max_tokens", "is missing", "Say how long the answer may be.")

    def chat(self, template: str) -> ChatBody:
        """The chat completion that answers this; `template` as of `chat_fields`.

        Raises:
            InvalidRequestError: names a field of this body.
        """
        names = ("max_tokens", "temperature", "top_p", "top_k", "stream", "cache_salt", "priority")
        shared = {name: getattr(self, name) for name in names}
        body = ChatBody(**self.chat_fields(template), **shared, stop=self.stop_sequences)
        body.check()
        return body


_NAMES = {"stop": "stop_sequences", "response_format": "output_config", "structured_outputs": "output_config"}


def renamed(error: InvalidRequestError) -> InvalidRequestError:
    """The same error, about the field of this API that became the one it is about."""
    old = error.param or ""
    new = _NAMES.get(old, old)
    if old.startswith("tools["):
        new = old.replace(".function", "", 1).replace(".parameters", ".input_schema", 1)
    if error.message.startswith(old):
        error.message = new + error.message[len(old) :]
    error.param = new or None
    return error


def _refuse(param: str, what: str, fix: str) -> NoReturn:
    raise InvalidRequestError(f"{param} {what}.", fix=fix, param=param, code="unsupported_value")


# -- messages ----------------------------------------------------------------------------------------------------


def _chat_messages(
    messages: list[dict[str, Any]], system: str | list[dict[str, Any]] | None
) -> Iterator[dict[str, Any]]:
    if sum(len(each["content"]) for each in messages if isinstance(each.get("content"), list)) > MAX_BLOCKS:
        _refuse("messages", f"have more than {MAX_BLOCKS} blocks", "Leave out what is too old.")
    instructions = _text_of(system, "system")
    if instructions:
        yield {"role": "system", "content": instructions}
    for i, message in enumerate(messages):
        at, role, content = f"messages[{i}]", message.get("role"), message.get("content")
        if role not in ("user", "assistant"):
            _refuse(f"{at}.role", 'is neither "user" nor "assistant"', "Instructions go into `system`.")
        if isinstance(content, str):
            yield {"role": role, "content": content}
        elif not isinstance(content, list):
            _refuse(f"{at}.content", "is neither a text nor a list of blocks", "Send a text.")
        elif role == "user":
            yield from _user_messages(content, f"{at}.content")
        else:
            yield _assistant_message(content, f"{at}.content")


def _user_messages(blocks: list[Any], at: str) -> Iterator[dict[str, Any]]:
    """Results of tools are messages of their own; the texts between them stay together."""
    texts: list[str] = []
    told = False
    for i, block in enumerate(blocks):
        kind = _kind(block, f"{at}[{i}]")
        if kind == "text":
            texts.append(_text(block, f"{at}[{i}]"))
        elif kind == "tool_result":
            if texts:
                yield {"role": "user", "content": "\n".join(texts)}
                texts = []
            told = True
            yield _tool_message(block, f"{at}[{i}]")
        else:
            _refuse(f"{at}[{i}]", f"is a block of the type {str(kind)[:40]!r}, which is not taken here", "Send text.")
    if texts or not told:
        yield {"role": "user", "content": "\n".join(texts)}


def _tool_message(block: Mapping[str, Any], at: str) -> dict[str, Any]:
    call = block.get("tool_use_id")
    if not isinstance(call, str):
        _refuse(f"{at}.tool_use_id", "is missing", "Send the id of the tool_use that it answers.")
    content = _text_of(block.get("content"), f"{at}.content")
    return {"role": "tool", "tool_call_id": call, "content": f"Error: {content}" if block.get("is_error") else content}


def _assistant_message(blocks: list[Any], at: str) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for i, block in enumerate(blocks):
        kind = _kind(block, f"{at}[{i}]")
        if kind == "text":
            texts.append(_text(block, f"{at}[{i}]"))
        elif kind == "thinking":
            thoughts.append(_text(block, f"{at}[{i}]", "thinking"))
        elif kind == "tool_use":
            calls.append(_call(block, f"{at}[{i}]"))
        elif kind != "redacted_thinking":
            _refuse(
                f"{at}[{i}]", f"is a block of the type {str(kind)[:40]!r}, which is not taken here", "Leave it out."
            )
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _call(block: Mapping[str, Any], at: str) -> dict[str, Any]:
    name, given = block.get("name"), block.get("input")
    if not isinstance(name, str) or not isinstance(block.get("id"), str):
        _refuse(at, "has no id or no name", "Send the block as it was told.")
    if not isinstance(given, dict):
        _refuse(f"{at}.input", "is no object", "Send the block as it was told.")
    function = {"name": name, "arguments": orjson.dumps(given).decode()}
    return {"id": block["id"], "type": "function", "function": function}


def _kind(block: Any, at: str) -> Any:
    if not isinstance(block, dict):
        _refuse(at, "is no object", 'Send {"type": "text", "text": "..."}.')
    return block.get("type")


def _text(block: Mapping[str, Any], at: str, name: str = "text") -> str:
    text = block.get(name)
    if not isinstance(text, str):
        _refuse(f"{at}.{name}", "is no text", "Send one.")
    return text


def _text_of(content: Any, at: str) -> str:
    """A text, or the texts of blocks."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        _refuse(at, "is neither a text nor a list of blocks", "Send a text.")
    for i, block in enumerate(content):
        if _kind(block, f"{at}[{i}]") != "text":
            _refuse(f"{at}[{i}]", "is no block of text, which alone is taken here", "Send text.")
    return "\n".join(_text(block, f"{at}[{i}]") for i, block in enumerate(content))


# -- tools -------------------------------------------------------------------------------------------------------


def _chat_tool(tool: Mapping[str, Any], place: int) -> dict[str, Any]:
    kind = tool.get("type") or "custom"
    if kind != "custom":
        what = f"is of the type {str(kind)[:40]!r}: tools that the server runs are not here"
        _refuse(f"tools[{place}].type", what, "Offer a tool with an input_schema, and run it yourself.")
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema")}
    function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _chat_choice(choice: ToolChoice) -> Any:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return {"auto": "auto", "any": "required", "none": "none"}[choice.type]


def _response_format(output: Mapping[str, Any] | None) -> dict[str, Any] | None:
    given = (output or {}).get("format")
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("type") != "json_schema" or not isinstance(given.get("schema"), dict):
        _refuse("output_config", 'has a format other than {"type": "json_schema", "schema": {...}}', "Send that.")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": given["schema"]}}
