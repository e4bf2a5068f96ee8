"""What /v1/responses looks like, for the OpenAPI document; replies themselves are made of dicts and bytes."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from octavo.server.openapi_replies import ChosenLogprob, Timing

Status = Literal["completed", "incomplete", "failed", "in_progress"]


class OutputText(Struct, tag_field="type", tag="output_text"):
    """Text of the answer."""

    text: str
    annotations: list[Any]
    logprobs: list[ChosenLogprob]


class ReasoningText(Struct, tag_field="type", tag="reasoning_text"):
    """Text of the reasoning."""

    text: str


class MessageItem(Struct, tag_field="type", tag="message"):
    """The answer."""

    id: str
    role: Literal["assistant"]
    status: Literal["completed", "incomplete"]
    content: list[OutputText]


class ReasoningItem(Struct, tag_field="type", tag="reasoning"):
    """The reasoning before it; there are no summaries."""

    id: str
    status: Literal["completed", "incomplete"]
    summary: list[Any]
    content: list[ReasoningText]


class FunctionCallItem(Struct, tag_field="type", tag="function_call"):
    """A call that the model asks for; an item function_call_output with its call_id answers it."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Literal["completed", "incomplete"]


class InputDetails(Struct):
    """Of the input's tokens.

    Attributes:
        cached_tokens: those that came from the prefix cache.
        cache_write_tokens: those that were computed and are kept there.
    """

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Struct):
    """Of the output's tokens."""

    reasoning_tokens: int


class ResponseUsage(Struct):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class IncompleteDetails(Struct):
    """Why the answer is cut."""

    reason: Literal["max_output_tokens"]


class ResponseFailure(Struct):
    """Why a response failed."""

    code: Literal["server_error", "rate_limit_exceeded"]
    message: str


class ResponseObject(Struct):
    """A response: its output, and the request's settings as they were used.

    Attributes:
        created_at, completed_at: seconds since 1970.
        incomplete_details: why it is incomplete, if it is.
        store: whether it was to be kept.
        output: reasoning, messages and function calls, in the order in which they were written.
    """

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    background: Literal[False]
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[MessageItem | ReasoningItem | FunctionCallItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: bool
    temperature: float
    presence_penalty: float
    frequency_penalty: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None
    timing: Timing | UnsetType = UNSET


class DeletedResponse(Struct):
    """A response that is no longer kept."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItemList(Struct):
    """Some items of a response's input, those of earlier responses that it goes on with included."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool
