"""One reply of /v1/responses, whole or as a stream of typed events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from octavo.async_llm import new_id
from octavo.errors import OctavoError, OverloadedError, TooManyRequestsError
from octavo.frontend.parsers import AnswerParser, Piece
from octavo.frontend.parsers.cursor import Kind
from octavo.frontend.sample import OpenRequest, Update
from octavo.frontend.tokenizer import Tokenizer
from octavo.request import SamplingParams, TokenLogprobs
from octavo.server.chat_parts import ChatParts
from octavo.server.logprobs import chat_logprobs
from octavo.server.responses_body import ReasoningOptions, ResponsesBody
from octavo.server.responses_output import Events, OutputItems
from octavo.server.timing import timing

Response = dict[str, Any]
_DONE = b"data: [DONE]\n\n"


class ResponseReply:
    """As of `octavo.server.render.Reply`.

    Args:
        response: as of `begun_response`; the reply fills it in.
        opened: the one request.
        parts: how to read the answer; None if all of it is text.
        keep: is given the response when it has ended.
        caches: whether what was computed of the prompt is kept for others.
    """

    def __init__(
        self,
        response: Response,
        body: ResponsesBody,
        opened: OpenRequest,
        tokenizer: Tokenizer | None,
        parts: ChatParts | None,
        *,
        keep: Callable[[Response], None],
        caches: bool = True,
    ):
        self.response = response
        self.timing = bool(body.timing)
        self.plain = parts is None and not body.wants_logprobs and not body.obfuscates
        self._body = body
        self._opened = opened
        self._tokenizer = tokenizer
        self._parts = parts
        self._keep = keep
        self._caches = caches
        self._events = Events()
        new_call_id = parts.new_id if parts is not None else new_id
        self._output = OutputItems(self._events, new_call_id, obfuscates=body.obfuscates)
        self._parser: AnswerParser | None = None
        self._held: list[TokenLogprobs] = []  # of tokens whose text is not told yet
        self._num_held = 0
        self._kind: Kind = "content"  # of the latest text
        self._num_reasoning = 0

    # -- streams -------------------------------------------------------------------------------------------------

    def opening(self) -> bytes:
        """What comes before any token."""
        event = self._events.event
        return event("response.created", response=self.response) + event("response.in_progress", response=self.response)

    def chunks(self, updates: Iterable[Update]) -> bytes:
        """Events for updates, in their order."""
        told: list[bytes] = []
        for update in updates:
            if not self.plain:
                told.append(self._take(update))
            elif update.text:
                told.append(self._output.text(update.text))
        return b"".join(told)

    def _take(self, update: Update) -> bytes:
        """Events for an update that may bring more than text. Tokens count as what the next text of theirs is."""
        ended = update.finish_reason is not None
        pieces = self._pieces(update.text, ended)
        self._held += update.logprobs or ()
        self._num_held += len(update.token_ids)
        if not pieces and not ended:
            return b""
        kind = pieces[0].kind if pieces else self._kind
        if kind == "reasoning":
            self._num_reasoning += self._num_held
        if kind == "content" and self._held and not pieces:
            pieces = [Piece(kind, "")]
        logprobs = self._logprobs() if kind == "content" else ()
        self._held, self._num_held = [], 0
        self._kind = pieces[-1].kind if pieces else kind
        if self._parts is not None and not self._parts.include_reasoning:
            pieces = [each for each in pieces if each.kind != "reasoning"]
        return self._output.take(pieces, logprobs)

    def _pieces(self, text: str, ended: bool) -> list[Piece]:
        if self._parts is None:
            return [Piece("content", text)] if text else []
        if self._parser is None:
            self._parser = self._parts.parser(self._parts.prompt_tail(self._opened, self._tokenizer))
        pieces = self._parser.feed(text)
        if ended:
            pieces += self._parser.finish()
        return pieces

    def _logprobs(self) -> list[dict[str, Any]]:
        as_ids = bool(self._body.return_tokens_as_token_ids)
        told: list[dict[str, Any]] = chat_logprobs(self._held, self._tokenizer, as_ids=as_ids)["content"]
        return told

    def closing(self) -> bytes:
        """The end of a stream."""
        told = self._end()
        return told + self._events.event(f"response.{self.response['status']}", response=self.response) + _DONE

    def failure(self, error: OctavoError) -> bytes:
        """The end of a stream that breaks off; what had come of the answer is told again."""
        response, event = self.response, self._events.event
        told = self._output.close("incomplete")
        told += event("error", code=error.code, message=str(error), param=error.param)
        response |= {"status": "failed", "output": self._output.items, "error": _error(error), "usage": self.usage()}
        return told + event("response.failed", response=response) + _DONE

    # -- whole replies -------------------------------------------------------------------------------------------

    def whole(self) -> Response:
        """The reply to a body that does not stream."""
        sample = self._opened.samples[0]
        if self.plain and sample.text:
            self._output.text(sample.text)
        self._end()
        return self.response

    def _end(self) -> bytes:
        reason = self._opened.samples[0].finish_reason
        status = "completed" if reason == "stop" else "incomplete"
        told = self._output.finish(status)
        response = self.response
        response |= {"status": status, "output": self._output.items, "usage": self.usage()}
        if reason == "stop":
            response["completed_at"] = int(time.time())
        elif reason == "length":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        if self.timing:
            response["timing"] = timing([self._opened])
        if reason in ("stop", "length"):  # else the client has hung up
            self._keep(response)
        return told

    def usage(self) -> dict[str, Any]:
        """Token counts."""
        opened = self._opened
        num_input, num_output = len(opened.prompt_token_ids), len(opened.samples[0].token_ids)
        cached = opened.num_cached_tokens
        written = num_input - cached if self._caches else 0
        return {
            "input_tokens": num_input,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
            "output_tokens": num_output,
            "output_tokens_details": {"reasoning_tokens": self._num_reasoning},
            "total_tokens": num_input + num_output,
        }


def begun_response(body: ResponsesBody, response_id: str, model: str, params: SamplingParams, stored: bool) -> Response:
    """A response that is in progress, with the request's settings as they are used.

    Args:
        params: of the request.
        stored: whether it will be kept.
    """
    reasoning = body.reasoning or ReasoningOptions()
    text = {"format": body.format} | ({"verbosity": body.text.verbosity} if body.text and body.text.verbosity else {})
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary or reasoning.generate_summary},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": stored,
        "temperature": params.temperature,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "text": text,
        "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
        "tools": [_tool(tool) for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": params.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    strict = bool(tool.get("strict"))
    kept = {name: tool.get(name) for name in ("name", "description", "parameters")}
    return {"type": "function", **kept, "strict": strict}


def _error(error: OctavoError) -> dict[str, str]:
    """The object of a failed response, whose codes are a closed set."""
    crowded = isinstance(error, OverloadedError | TooManyRequestsError)
    return {"code": "rate_limit_exceeded" if crowded else "server_error", "message": str(error)}
