"""What replies look like, for the OpenAPI document. Replies themselves are made of dicts and bytes, where that is
faster; `tests/server_api/test_schemathesis.py` holds them against these.

A field whose default is UNSET is there only when it was asked for, or when there is something to tell.
"""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType


class ErrorDetail(Struct):
    """What is wrong, and what to do.

    Attributes:
        type: the class of error, as OpenAI's clients know them.
        param: the field at fault, if one is.
        code: stable name of the error.
    """

    message: str
    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "not_found_error",
        "rate_limit_error",
        "server_error",
        "overloaded_error",
        "timeout_error",
    ]
    param: str | None
    code: str


class ErrorReply(Struct):
    """Every error."""

    error: ErrorDetail


class Status(Struct):
    """How the server stands.

    Attributes:
        phase: of loading, while it loads.
        percent, fraction: how much of that phase is done.
        message: why the engine ended.
    """

    status: str
    phase: str | UnsetType = UNSET
    percent: float | UnsetType = UNSET
    fraction: float | UnsetType = UNSET
    message: str | UnsetType = UNSET


class Version(Struct):
    """Octavo's version."""

    version: str


class ModelCard(Struct):
    """A served model.

    Attributes:
        root: the model behind the served name.
        max_model_len: longest sequence, prompt and output.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int
    vocab_size: int


class ModelList(Struct):
    """The served models."""

    object: Literal["list"]
    data: list[ModelCard]


class PromptDetails(Struct):
    """Of the prompt's tokens.

    Attributes:
        cached_tokens: those that came from the prefix cache.
    """

    cached_tokens: int


class Usage(Struct):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TimingEntry(Struct):
    """Seconds of one prompt; times that never came are left out."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    total_time: float
    queue_time: float | UnsetType = UNSET
    prefill_time: float | UnsetType = UNSET
    time_to_first_token: float | UnsetType = UNSET
    decode_time: float | UnsetType = UNSET
    time_per_output_token: float | UnsetType = UNSET


class Timing(Struct):
    """Where the time went, one entry a prompt."""

    requests: list[TimingEntry]


class PromptLogprob(Struct):
    """A token that could have stood at one place of the prompt."""

    logprob: float
    rank: int
    decoded_token: str


FinishReason = Literal["stop", "length", "tool_calls", "abort"]


class CompletionLogprobs(Struct):
    """Logprobs in the older form, one entry a token; of a prompt's first token there is none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Struct):
    """One answer; index p * n + i is answer i to prompt p."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | UnsetType = UNSET


class Completion(Struct):
    """The reply of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage
    service_tier: Literal["default"] | UnsetType = UNSET
    timing: Timing | UnsetType = UNSET


class TokenLogprob(Struct):
    """A token and its logprob; `bytes` also tells what half a character is."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChosenLogprob(Struct):
    """A token of the answer, and the likeliest ones in its place."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Struct):
    """One entry a token of the answer."""

    content: list[ChosenLogprob]
    refusal: None


class CalledFunction(Struct):
    """Name, and arguments as the text of a JSON object."""

    name: str
    arguments: str


class ToolCall(Struct):
    """A call that the model asks for."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(Struct):
    """The answer. `reasoning_content` is `reasoning` under its older name."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Struct):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct):
    """The reply of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    service_tier: Literal["default"] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | UnsetType = UNSET
    timing: Timing | UnsetType = UNSET


class EmbeddingItem(Struct):
    """One vector: numbers, or the base64 of their float32 bytes (little-endian)."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Struct):
    """Token counts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Struct):
    """The reply of /v1/embeddings, in the order of the inputs."""

    id: str
    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage


class Tokenized(Struct):
    """The reply of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(Struct):
    """The reply of /detokenize."""

    prompt: str


class TokenizerFacts(Struct):
    """The reply of /tokenizer_info.

    Attributes:
        tokenizer_class: the class of `transformers` that a tokenizer of this kind is there.
        tokenizer_model: BPE, Unigram, WordPiece or WordLevel.
        eos_token_ids: ids that end an answer.
        special_tokens: spellings of all control tokens.
    """

    tokenizer_class: str
    tokenizer_model: str
    vocab_size: int
    model_max_length: int
    bos_token_id: int | None
    eos_token_id: int | None
    eos_token_ids: list[int]
    chat_template: str | None
    special_tokens: list[str]
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
