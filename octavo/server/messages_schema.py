"""What /v1/messages looks like, for the OpenAPI document; replies themselves are made of dicts and bytes."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from octavo.server.openapi_replies import Timing


class TextBlock(Struct, tag_field="type", tag="text"):
    """Text of the answer."""

    text: str
    citations: None


class ThinkingBlock(Struct, tag_field="type", tag="thinking"):
    """Thoughts before it; the signature is empty."""

    thinking: str
    signature: str


class ToolUseBlock(Struct, tag_field="type", tag="tool_use"):
    """A call that the model asks for; a block tool_result with its id answers it."""

    id: str
    name: str
    input: dict[str, Any]
    caller: dict[Literal["type"], Literal["direct"]]


class MessageUsage(Struct):
    """Token counts.

    Attributes:
        input_tokens: of the prompt, those that had to be computed.
        cache_read_input_tokens: of the prompt, those that came from the prefix cache.
        cache_creation_input_tokens: 0, as keeping costs nothing.
    """

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    cache_creation: None
    inference_geo: None
    output_tokens_details: None
    server_tool_use: None
    service_tier: Literal["standard"]


class MessageObject(Struct):
    """A message of the assistant's."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    stop_details: None
    container: None
    usage: MessageUsage
    timing: Timing | UnsetType = UNSET


class CountedTokens(Struct):
    """Length of a prompt."""

    input_tokens: int


class MessageErrorDetail(Struct):
    """What is wrong, and what to do.

    Attributes:
        code: for programs.
        param: the field that is wrong.
    """

    type: str
    message: str
    code: str
    param: str | UnsetType = UNSET


class MessageErrorReply(Struct):
    """An error in Anthropic's words."""

    type: Literal["error"]
    error: MessageErrorDetail
