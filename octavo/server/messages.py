"""/v1/messages: Anthropic's API over what answers chats (https://docs.anthropic.com/en/api/messages)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import orjson

from octavo.async_llm import AsyncLLM, new_id
from octavo.errors import InvalidRequestError, OctavoError
from octavo.frontend.parsers import AnswerParser, Piece, read_answer
from octavo.frontend.sample import OpenRequest, Sample, Update
from octavo.frontend.tokenizer import Tokenizer
from octavo.server.answer import answer
from octavo.server.chat_parts import ChatParts
from octavo.server.generation import Generation, served_model
from octavo.server.http import ClientGoneError, Exchange
from octavo.server.messages_body import MessagesBody, PromptBody, renamed
from octavo.server.protocol import decode, decoder
from octavo.server.timing import timing
from octavo.server.tools import tool_request

PREFIX = "/v1/messages"
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}


def speaks_anthropic(path: str) -> bool:
    """Whether errors on this path are told in Anthropic's words."""
    return path == PREFIX or path.startswith(PREFIX + "/")


def anthropic_error(error: OctavoError) -> dict[str, Any]:
    """Anthropic's error object, with what OpenAI's has beside: the field, and a code for programs."""
    told = {"type": _KINDS.get(error.status, "api_error"), "message": str(error), "code": error.code}
    return {"type": "error", "error": told | ({} if error.param is None else {"param": error.param})}


class Messages:
    """Serves messages."""

    def __init__(self, llm: AsyncLLM):
        self._llm = llm
        self._messages = decoder(MessagesBody)
        self._prompts = decoder(PromptBody)

    async def create(self, exchange: Exchange, data: bytes, generation: Generation, names: tuple[str, ...]) -> None:
        """POST /v1/messages.

        Args:
            names: of the model, the first of which is the proper one.
        """
        body = decode(self._messages, data)
        body.check()
        model = served_model(body.model, names)
        message_id = "msg_" + new_id()
        try:
            stream, parts = await generation.open_chat(body.chat(self._template), message_id)
        except InvalidRequestError as error:
            raise renamed(error) from None
        reply = MessageReply(message_id, model, stream.opened[0], self._llm.frontend.tokenizer, parts)
        await answer(exchange, stream, reply, bool(body.stream))

    async def count_tokens(self, exchange: Exchange, data: bytes, names: tuple[str, ...]) -> None:
        """POST /v1/messages/count_tokens: what the prompt would be, without answering it."""
        body = decode(self._prompts, data)
        body.check()
        served_model(body.model, names)
        fields = body.chat_fields(self._template)
        try:
            tools = tool_request(fields["tools"], fields["tool_choice"], None)
        except InvalidRequestError as error:
            raise renamed(error) from None
        inputs, messages = self._llm.frontend.inputs, fields["messages"]

        def work() -> bytes:
            _, ids = inputs.encode_chat(
                messages,
                tools.shown if tools is not None else None,
                add_generation_prompt=fields["add_generation_prompt"] is not False,
                continue_final_message=bool(fields["continue_final_message"]),
                chat_template_kwargs=fields["chat_template_kwargs"],
            )
            return orjson.dumps({"input_tokens": len(ids)})

        counted = await self._llm.off_loop.text(work, len(data), exchange.wait_gone)
        if counted is None:
            raise ClientGoneError
        await exchange.reply(200, counted, b"application/json")

    @property
    def _template(self) -> str:
        return self._llm.frontend.inputs.template_source


class MessageReply:
    """One message, as of `octavo.server.render.Reply`.

    Args:
        opened: the one request.
        parts: how to read the answer; None if all of it is text.
    """

    def __init__(
        self,
        message_id: str,
        model: str,
        opened: OpenRequest,
        tokenizer: Tokenizer | None,
        parts: ChatParts | None,
    ):
        self.timing = False
        self._head: dict[str, Any] = {"id": message_id, "type": "message", "role": "assistant", "model": model}
        self._head |= {"container": None, "stop_details": None}  # which its schema wants
        self._opened = opened
        self._tokenizer = tokenizer
        self._parts = parts
        self._parser: AnswerParser | None = None
        short = parts is not None and parts.tools is not None and parts.tools.short_ids
        self._new_id = parts.new_id if parts is not None and short else _new_call_id  # as the model's template takes it
        self._blocks = _Blocks(self._new_id)

    # -- streams -------------------------------------------------------------------------------------------------

    def opening(self) -> bytes:
        """What comes before any token; how much of the prompt was cached is told at the end."""
        usage = self._usage() | {"output_tokens": 0}
        message: dict[str, Any] = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        return event("message_start", message=message) + event("ping")

    def chunks(self, updates: Iterable[Update]) -> bytes:
        """Events for updates, in their order."""
        told: list[bytes] = []
        for update in updates:
            if self._parts is None:
                if update.text:
                    told.append(self._blocks.text(update.text))
                continue
            if self._parser is None:
                self._parser = self._new_parser(self._parts)
            pieces = self._parser.feed(update.text)
            if update.finish_reason is not None:
                pieces += self._parser.finish()
            told += [self._blocks.take(piece) for piece in pieces if self._is_told(piece)]
        return b"".join(told)

    def closing(self) -> bytes:
        """The end of a stream."""
        end = self._end(self._opened.samples[0], self._blocks.num_calls)
        usage = self._usage() | ({"timing": timing([self._opened])} if self.timing else {})
        return self._blocks.close() + event("message_delta", delta=end, usage=usage) + event("message_stop")

    def failure(self, error: OctavoError) -> bytes:
        """The end of a stream that breaks off."""
        return b"event: error\ndata: %b\n\n" % orjson.dumps(anthropic_error(error))

    # -- whole replies -------------------------------------------------------------------------------------------

    def whole(self) -> dict[str, Any]:
        """The reply to a body that does not stream."""
        sample = self._opened.samples[0]
        pieces = [Piece("content", sample.text)] if sample.text else []
        if self._parts is not None:
            pieces = read_answer(self._new_parser(self._parts), sample.text)
        content = self._whole_blocks(pieces)
        num_calls = sum(block["type"] == "tool_use" for block in content)
        message: dict[str, Any] = {
            **self._head,
            "content": content,
            **self._end(sample, num_calls),
            "usage": self._usage(),
        }
        return message | ({"timing": timing([self._opened])} if self.timing else {})

    def _whole_blocks(self, pieces: Iterable[Piece]) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = []
        texts: list[str] = []
        for piece in filter(self._is_told, pieces):
            if piece.kind == "call" or not blocks or blocks[-1]["type"] != _TYPES[piece.kind]:
                _fill(blocks, texts)
                blocks.append(_new_block(piece, self._new_id))
                texts = []
            if piece.kind != "call":
                texts.append(piece.text)
        _fill(blocks, texts)
        return blocks

    # -- what both have ------------------------------------------------------------------------------------------

    def _new_parser(self, parts: ChatParts) -> AnswerParser:
        return parts.parser(parts.prompt_tail(self._opened, self._tokenizer))

    def _is_told(self, piece: Piece) -> bool:
        return piece.kind != "reasoning" or (self._parts is not None and self._parts.include_reasoning)

    def _usage(self) -> dict[str, Any]:
        """Token counts; `input_tokens` are those that had to be computed."""
        opened = self._opened
        cached = opened.num_cached_tokens
        return {
            "input_tokens": len(opened.prompt_token_ids) - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": len(opened.samples[0].token_ids),
            **_USAGE_OF_OTHERS,
        }

    @staticmethod
    def _end(sample: Sample, num_calls: int) -> dict[str, Any]:
        if isinstance(sample.stop_reason, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": sample.stop_reason}
        reason = _STOP_REASONS.get(sample.finish_reason or "", "end_turn")
        return {"stop_reason": "tool_use" if reason == "end_turn" and num_calls else reason, "stop_sequence": None}


_USAGE_OF_OTHERS = {
    "cache_creation": None,
    "inference_geo": None,
    "output_tokens_details": None,
    "server_tool_use": None,
    "service_tier": "standard",
}
"""What Anthropic's schema wants, and only its own service has."""
_TYPES = {"content": "text", "reasoning": "thinking", "call": "tool_use", "arguments": "tool_use"}
_DELTAS = {
    "content": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "arguments": ("input_json_delta", "partial_json"),
}


def event(kind: str, **fields: Any) -> bytes:
    """A server-sent event of a type."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


def _new_block(piece: Piece, new_call_id: Callable[[], str]) -> dict[str, Any]:
    """An empty block for what a piece begins."""
    kind = _TYPES[piece.kind]
    if kind == "tool_use":
        return {"type": kind, "id": new_call_id(), "name": piece.text, "input": {}, "caller": {"type": "direct"}}
    return {"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {"citations": None})


def _fill(blocks: list[dict[str, Any]], texts: list[str]) -> None:
    """Put what was read into the block that it belongs to."""
    if not blocks:
        return
    block, text = blocks[-1], "".join(texts)
    if block["type"] != "tool_use":
        block[block["type"]] = text
    elif text:
        block["input"] = _arguments(text)


def _arguments(text: str) -> dict[str, Any]:
    """What a model wrote as arguments; if it is no object, it is told under a name of its own."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        found = None
    return found if isinstance(found, dict) else {"_unreadable": text}


def _new_call_id() -> str:
    return f"toolu_{new_id()[:24]}"


class _Blocks:
    """The blocks of a message while it is streamed.

    Attributes:
        num_calls: tool_use blocks so far.
    """

    __slots__ = ("_kind", "_new_call_id", "_num", "_text_head", "num_calls")

    def __init__(self, new_call_id: Callable[[], str]):
        self.num_calls = 0
        self._new_call_id = new_call_id
        self._num = 0
        self._kind = ""  # of the open block
        self._text_head = b""

    def text(self, text: str) -> bytes:
        """Events for more text; once its block is open, three pieces of bytes."""
        if self._kind != "text":
            return self.take(Piece("content", text))
        return b"%b%b}}\n\n" % (self._text_head, orjson.dumps(text))

    def take(self, piece: Piece) -> bytes:
        """Events for a piece of the answer."""
        kind, told = _TYPES[piece.kind], b""
        if piece.kind == "call" or self._kind != kind:
            told = self.close() + event(
                "content_block_start", index=self._num, content_block=_new_block(piece, self._new_call_id)
            )
            self._kind = kind
            if kind == "text":
                self._text_head = (
                    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
                    b'"delta":{"type":"text_delta","text":' % self._num
                )
        if piece.kind == "call":
            self.num_calls += 1
            return told
        delta, name = _DELTAS[piece.kind]
        return told + event("content_block_delta", index=self._num, delta={"type": delta, name: piece.text})

    def close(self) -> bytes:
        """Events for the end of the open block, if one is."""
        if not self._kind:
            return b""
        self._kind = ""
        self._num += 1
        return event("content_block_stop", index=self._num - 1)
