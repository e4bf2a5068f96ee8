"""Bodies of requests, as OpenAI's API has them and with vLLM's extras. Unknown fields are ignored, wrong types are not.

Every field may be null, which means its default.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec

from octavo.errors import InvalidRequestError
from octavo.grammar.structured import from_body
from octavo.request import SamplingParams, StructuredOutputs
from octavo.server.protocol_fields import OpenAIFields
from octavo.server.tools import check_tool_messages

Body = TypeVar("Body", bound=msgspec.Struct)

_AT = re.compile(r" - at `(?:key` in `)?\$(.*?)`$")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
MAX_PROMPTS = 1024
MAX_BEST_OF = 20


class StreamOptions(msgspec.Struct, kw_only=True):
    """How to stream."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class GenerationBody(OpenAIFields, kw_only=True):
    """What completions and chat completions share. Those of `_SAMPLING` become fields of `SamplingParams`.

    Attributes:
        bad_words: words that the answer cannot have; each must be a single token.
        stream_options: `include_usage` adds an event with the counts, `continuous_usage_stats` the counts so far to
            each event, `include_obfuscation` a filler that makes the events of short texts equally long.
        truncate_prompt_tokens: keep the last so many tokens of the prompt; -1 as many as the context and max_tokens
            leave.
        return_tokens_as_token_ids: logprobs name tokens as "token_id:ID", which tells all of them apart.
        request_id: the reply's id ends with it.
    """

    model: str | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    banned_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: int | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    timing: bool | None = None
    tools: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_json_object: bool | None = None
    guided_whitespace_pattern: str | None = None
    bad_words: list[str] | None = None
    truncate_prompt_tokens: int | None = None
    return_tokens_as_token_ids: bool | None = None
    request_id: str | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts tokens."""
        return bool(self.stream_options is not None and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk of a stream tells the counts so far."""
        return bool(self.stream_options is not None and self.stream_options.continuous_usage_stats)

    @property
    def obfuscates(self) -> bool:
        """Whether the chunks of a stream are filled up."""
        return bool(self.stream_options is not None and self.stream_options.include_obfuscation)

    def params(self, defaults: Mapping[str, Any] | None = None, **changes: Any) -> SamplingParams:
        """Sampling parameters; fields that were not sent have their defaults, `changes` go before all.

        Args:
            defaults: go before `SamplingParams`' own, but not for beam search, which samples nothing.
        """
        values: dict[str, Any] = {name: getattr(self, name) for name in _SAMPLING}
        if defaults and not self.use_beam_search:
            values |= {name: value for name, value in defaults.items() if values.get(name) is None}
        for name in ("stop_token_ids", "allowed_token_ids", "banned_token_ids"):
            ids = getattr(self, name)
            values[name] = None if ids is None else tuple(ids)
        if self.use_beam_search and self.temperature is None:
            values["temperature"] = 0.0
        values["stop"] = (self.stop,) if isinstance(self.stop, str) else self.stop and tuple(self.stop)
        values["structured_outputs"] = self._structured_outputs()
        values.update(changes)
        return SamplingParams(**{name: value for name, value in values.items() if value is not None})

    def _structured_outputs(self) -> StructuredOutputs | None:
        legacy = {name: getattr(self, name) or None for name in _LEGACY}
        return from_body(self.response_format, self.structured_outputs, legacy)

    def check(self) -> None:
        """Refuse what would be silently left undone.

        Raises:
            InvalidRequestError: names the field.
        """
        self.check_fields()
        if self.request_id is not None and not _REQUEST_ID.fullmatch(self.request_id):
            raise InvalidRequestError(
                "request_id has characters that an id cannot have, or more than 128.",
                fix="Send letters, digits, _ . : and -, or none.",
                param="request_id",
            )
        if self.stream_options is not None and not self.stream:
            raise _unsupported("stream_options", "goes with stream only", "Set stream to true, or leave it out.")
        if self.prompt_logprobs is not None and self.stream:
            raise _unsupported("prompt_logprobs", "do not go with a stream", "Leave one of them out.")
        if self.continuous_usage and not self.include_usage:
            what = "with continuous_usage_stats needs include_usage too"
            raise _unsupported("stream_options", what, "Set it to true.")


_SAMPLING = (
    "n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "max_tokens", "min_tokens", "seed", "include_stop_str_in_output", "ignore_eos", "skip_special_tokens",
    "logit_bias", "prompt_logprobs", "use_beam_search", "length_penalty", "early_stopping",
)  # fmt: skip


_LEGACY = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_json_object",
           "guided_whitespace_pattern")  # fmt: skip


class CompletionBody(GenerationBody, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[Any] | None = None
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None
    add_special_tokens: bool | None = None

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or many. Ids inside are checked later, by the one validator."""
        prompt = self.prompt
        if prompt is None:
            raise InvalidRequestError("prompt is missing.", fix="Send a text or token ids.", param="prompt")
        if isinstance(prompt, str):
            return [prompt]
        if not prompt:
            raise InvalidRequestError("prompt is empty.", fix="Send a text or token ids.", param="prompt")
        if all(type(item) is int for item in prompt):
            return [prompt]
        if all(isinstance(item, str) for item in prompt) or all(isinstance(item, list) for item in prompt):
            if len(prompt) > MAX_PROMPTS:
                message = f"There are {len(prompt)} prompts, more than {MAX_PROMPTS}."
                raise InvalidRequestError(message, fix="Send them in several requests.", param="prompt")
            return prompt
        raise InvalidRequestError(
            "prompt must be a text, a list of texts, a list of token ids, or a list of lists of token ids.",
            fix="Do not mix them.",
            param="prompt",
        )

    def check(self) -> None:
        """As of the base class."""
        super().check()
        if self.tools:
            raise _unsupported("tools", "go with chat completions only", "Send messages to /v1/chat/completions.")
        if self.suffix:
            raise _unsupported("suffix", "is not supported", "Put it into the prompt.")
        if self.best_of is None:
            return
        if not 1 <= (1 if self.n is None else self.n) <= self.best_of <= MAX_BEST_OF:
            raise InvalidRequestError(
                f"best_of cannot be {str(self.best_of)[:20]}: it is from n to {MAX_BEST_OF}.",
                fix="Choose one in that range.",
                param="best_of",
            )
        if self.chooses and (self.stream or self.use_beam_search):
            what = "a stream (the best is known at the end only)" if self.stream else "beam search (it finds the best)"
            raise _unsupported("best_of", f"above n does not go with {what}", "Leave one of them out.")

    @property
    def chooses(self) -> bool:
        """Whether more answers are drawn than come back."""
        return self.best_of is not None and self.best_of > (1 if self.n is None else self.n)


class ChatBody(GenerationBody, kw_only=True):
    """POST /v1/chat/completions.

    Attributes:
        reasoning_effort: for templates that know it; "none" also switches off the thinking of those that can.
        documents: for templates that know them; others refuse them.
    """

    messages: list[dict[str, Any]] | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    modalities: list[str] | None = None
    audio: Any = None
    web_search_options: Any = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    documents: list[dict[str, Any]] | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None

    def template_variables(self, template: str) -> dict[str, Any]:
        """What the chat template gets beside messages and tools.

        Args:
            template: its Jinja.

        Raises:
            InvalidRequestError: the template knows no documents.
        """
        variables = dict(self.chat_template_kwargs or {})
        if self.documents:
            if "documents" not in template:
                raise _unsupported(
                    "documents", "are not known to this model's chat template", "Put them into a message."
                )
            variables["documents"] = self.documents
        if self.reasoning_effort is not None:
            if "reasoning_effort" in template:
                variables.setdefault("reasoning_effort", self.reasoning_effort)
            if self.reasoning_effort == "none" and "enable_thinking" in template:
                variables.setdefault("enable_thinking", False)
        return variables

    def check(self) -> None:
        """As of the base class."""
        super().check()
        if not self.messages:
            raise InvalidRequestError("messages are missing.", fix="Send at least one.", param="messages")
        check_tool_messages(self.messages)
        if self.audio is not None or any(kind != "text" for kind in self.modalities or ()):
            raise _unsupported("modalities", "other than text are not supported", 'Send ["text"] or leave it out.')
        if self.web_search_options is not None:
            raise _unsupported("web_search_options", "is not supported", "Leave it out.")
        for name in ("echo", "add_special_tokens"):
            if getattr(self, name):
                raise _unsupported(name, "goes with /v1/completions only", "Leave it out.")
        if "documents" in (self.chat_template_kwargs or {}):
            raise _unsupported("chat_template_kwargs", "cannot set 'documents'", "Send them as documents.")
        if self.top_logprobs is not None and not self.logprobs:
            raise _unsupported("top_logprobs", "goes with logprobs only", "Set logprobs to true, or leave it out.")


def decoder(kind: type[Body]) -> msgspec.json.Decoder[Body]:
    """A JSON decoder for one kind of body."""
    return msgspec.json.Decoder(kind)


def decode(body_decoder: msgspec.json.Decoder[Body], data: bytes) -> Body:
    """A body from its bytes.

    Raises:
        InvalidRequestError: it is not JSON, or a field has the wrong type.
    """
    try:
        return body_decoder.decode(data)
    except msgspec.ValidationError as error:
        if "got `float`" in str(error):
            with contextlib.suppress(msgspec.ValidationError):
                return msgspec.convert(with_whole_numbers(msgspec.json.decode(data)), body_decoder.type, str_keys=True)
        message = str(error)
        found = _AT.search(message)
        path = found.group(1).lstrip(".") if found else ""
        field = re.split(r"[.\[]", path, maxsplit=1)[0] or None
        what = message[: found.start()] if found else message
        raise InvalidRequestError(
            f"{path or 'The body'}: {what[:1].lower()}{what[1:]}.",
            fix="Correct its type.",
            param=field,
            code="invalid_type",
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(
            f"The body is not valid JSON: {error}.", fix="Send an object in JSON (RFC 8259).", code="invalid_json"
        ) from None


def with_whole_numbers(value: Any) -> Any:
    """The same JSON, with 16 for 16.0: to JSON they are one number, and some clients write the latter."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**63 else value
    if isinstance(value, list):
        return [with_whole_numbers(each) for each in value]
    if isinstance(value, dict):
        return {key: with_whole_numbers(each) for key, each in value.items()}
    return value


def _unsupported(param: str, what: str, fix: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param} {what}.", fix=fix, param=param, code="unsupported_value")
