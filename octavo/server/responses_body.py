"""The body of POST /v1/responses, and the chat completion that it asks for."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from octavo.errors import InvalidRequestError
from octavo.server.protocol import ChatBody, GenerationBody
from octavo.server.responses_items import Item, chat_messages

_WAIT = "Leave it out: responses are made while you wait, or streamed."
_ELSEWHERE = {
    "max_tokens": "Send max_output_tokens.",
    "response_format": "Send text.format.",
    "n": "Send the request several times.",
    "prompt_logprobs": "Send /v1/completions the prompt.",
    "return_token_ids": "Leave it out; chat completions tell them.",
    "background": _WAIT,
    "conversation": "Send previous_response_id, or the items.",
    "prompt": "Send instructions and input.",
    "context_management": "Send fewer items.",
}
_NAMES = {
    "messages": "input",
    "prompt": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "logprobs": "top_logprobs",
    "response_format": "text.format",
    "structured_outputs": "text.format",
    "reasoning_effort": "reasoning.effort",
}
"""What chat completions call a field, to what it is called here."""

Included = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


class TextOptions(msgspec.Struct, kw_only=True):
    """What the text of an answer looks like.

    Attributes:
        format: {"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "name", "schema"}.
        verbosity: a hint, which changes nothing.
    """

    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(msgspec.Struct, kw_only=True):
    """How to reason.

    Attributes:
        effort: for templates that know it; "none" also switches off the thinking of those that can.
        summary, generate_summary: taken, but there are no summaries: the reasoning itself is told.
    """

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponsesBody(GenerationBody, kw_only=True):
    """POST /v1/responses.

    Attributes:
        input: a text of the user's, or items: messages, function calls, their outputs, reasoning.
        instructions: a system message before all else, of this response alone.
        previous_response_id: of a stored response, after whose conversation the input comes.
        store: keep the response for a while (default true).
        include: message.output_text.logprobs adds logprobs; the others are of items that there are none of.
        top_logprobs: likeliest tokens that are told at each place of the text.
        max_tool_calls: of hosted tools, of which there are none.
    """

    input: str | list[Any] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    top_logprobs: int | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    include: list[Included] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    context_management: Any = None
    include_reasoning: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def format(self) -> dict[str, Any]:
        """Of the text."""
        return (self.text and self.text.format) or {"type": "text"}

    @property
    def wants_logprobs(self) -> bool:
        """Whether the text comes with logprobs."""
        return bool(self.top_logprobs) or "message.output_text.logprobs" in (self.include or ())

    def check(self) -> None:
        """As of the base class."""
        super().check()
        for name, fix in _ELSEWHERE.items():
            value = getattr(self, name)
            if value and not (name == "n" and value == 1):
                raise _unsupported(name, "is not supported here", fix)
        if self.n == 0 or self.prompt_logprobs == 0 or self.max_tokens == 0:
            name = next(name for name in ("n", "prompt_logprobs", "max_tokens") if getattr(self, name) == 0)
            raise _unsupported(name, "is not supported here", _ELSEWHERE[name])
        if self.truncation == "auto":
            what = 'cannot be "auto": items are not dropped behind your back'
            raise _unsupported("truncation", what, 'Send "disabled", and fewer items.')

    def chat(self, items: list[Item]) -> ChatBody:
        """The chat completion that answers these items.

        Raises:
            InvalidRequestError: names a field of this body.
        """
        shared = {name: getattr(self, name) for name in GenerationBody.__struct_fields__}
        shared["tools"] = None if self.tools is None else [_chat_tool(tool) for tool in self.tools]
        shared["response_format"] = _response_format(self.format)
        body = ChatBody(
            **shared,
            messages=chat_messages(items, self.instructions),
            max_completion_tokens=self.max_output_tokens,
            logprobs=self.wants_logprobs or None,
            top_logprobs=self.top_logprobs if self.wants_logprobs else None,
            tool_choice=self.tool_choice,
            parallel_tool_calls=self.parallel_tool_calls,
            include_reasoning=self.include_reasoning,
            chat_template_kwargs=self.chat_template_kwargs,
            reasoning_effort=self.reasoning.effort if self.reasoning is not None else None,
        )
        body.check()
        return body

    def renamed(self, error: InvalidRequestError) -> InvalidRequestError:
        """The same error, about the field of this body that became the one it is about."""
        old = error.param or ""
        root = old.partition("[")[0].partition(".")[0]
        new = _NAMES.get(root, "")
        if root == "structured_outputs" and self.structured_outputs is not None:
            new = ""
        if root == "tools":
            new = old.replace(".function", "", 1)
        if new and new != old:
            if error.message.startswith(old):
                error.message = new + error.message[len(old) :]
            error.param = new
        return error


def _chat_tool(tool: Any) -> Any:
    """Functions have their fields in an object of their own there; what is no function is refused there."""
    if not isinstance(tool, dict) or tool.get("type") != "function":
        return tool
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}


def _response_format(given: dict[str, Any]) -> dict[str, Any]:
    if given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {"name": given.get("name"), "schema": given.get("schema")}}


def _unsupported(param: str, what: str, fix: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param} {what}.", fix=fix, param=param, code="unsupported_value")
