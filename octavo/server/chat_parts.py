"""Chat answers with parts: reasoning, content, calls. Plain answers never come here."""

from __future__ import annotations

import importlib.util
import logging
import secrets
import string
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

from octavo.async_llm import AsyncLLM
from octavo.config import ServerOptions
from octavo.errors import InvalidRequestError
from octavo.frontend.parsers import (
    AnswerParser,
    Offered,
    Piece,
    ReasoningFormat,
    ToolFormat,
    detect_reasoning,
    detect_tools,
    get,
    get_reasoning,
    read_answer,
)
from octavo.frontend.parsers.formats import JSON_ARRAY, named_call
from octavo.frontend.sample import OpenRequest, Sample, Update
from octavo.frontend.tokenizer import Tokenizer
from octavo.request import SamplingParams, StructuredOutputs, TokenLogprobs
from octavo.server.render import ChatRendering
from octavo.server.tools import ToolRequest

logger = logging.getLogger("octavo.server")

_TAIL_TOKENS = 16  # of the prompt, which tell whether it began or ended the reasoning
_SHORT_ID = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class Formats:
    """How the served model writes calls and reasoning; None where that is not looked for."""

    tools: ToolFormat | None
    reasoning: ReasoningFormat | None
    automatic: bool = True

    @staticmethod
    def check(options: ServerOptions) -> None:
        """Raises ConfigError: a flag names an unknown format."""
        _tools(options, "")
        _reasoning(options, "")

    @classmethod
    def of(cls, options: ServerOptions, llm: AsyncLLM) -> Formats:
        """As the flags say, or as the model's chat template shows.

        A model whose template knows no tools gets them in words, in the chosen format or in that of hermes.

        Raises:
            ConfigError: a flag names an unknown format.
        """
        inputs = llm.frontend.inputs
        tools, reasoning = _tools(options, inputs.template_source), _reasoning(options, inputs.template_source)
        if tools is not None:
            inputs.tool_format = tools
        logger.info(
            "tool calls: %s; reasoning: %s",
            tools.name if tools is not None else "none",
            reasoning.name if reasoning is not None else "none",
        )
        return cls(tools, reasoning, options.enable_auto_tool_choice)

    def parts(self, request: ToolRequest | None, *, include_reasoning: bool = True) -> ChatParts | None:
        """How to read the answers to one request; None if all of each is content.

        Raises:
            InvalidRequestError: calls were asked for, and the server looks for none.
        """
        mode = request.mode if request is not None else "none"
        if request is not None and mode == "named":
            return ChatParts(named_call(request.name), Offered(request.schemas), None, 1)
        if request is not None and mode == "required":
            return ChatParts(JSON_ARRAY, Offered(request.schemas), None, None if request.parallel else 1)
        if request is not None and mode == "auto" and (self.tools is None or not self.automatic):
            raise InvalidRequestError(
                'tool_choice "auto" is switched off on this server.',
                fix='Choose "none", "required" or a function; or start it with --enable-auto-tool-choice and a '
                "--tool-call-parser.",
                param="tool_choice",
            )
        tools = self.tools if mode == "auto" else None
        if tools is None and self.reasoning is None:
            return None
        offered, max_calls = None, None
        if request is not None:
            offered, max_calls = Offered(request.schemas), None if request.parallel else 1
        return ChatParts(tools, offered, self.reasoning, max_calls, include_reasoning)


def _tools(options: ServerOptions, template: str) -> ToolFormat | None:
    if options.tool_call_parser == "none":
        return None
    if options.tool_call_parser == "auto":
        return detect_tools(template) or get("hermes")
    return get(options.tool_call_parser)


def _reasoning(options: ServerOptions, template: str) -> ReasoningFormat | None:
    if options.reasoning_parser == "none":
        return None
    if options.reasoning_parser == "auto":
        return detect_reasoning(template)
    return get_reasoning(options.reasoning_parser)


@dataclass(frozen=True, slots=True)
class ChatParts:
    """How to read the answers to one request.

    Attributes:
        max_calls: calls beyond this are left out; None is any number.
        include_reasoning: whether the reasoning is told.
    """

    tools: ToolFormat | None
    offered: Offered | None
    reasoning: ReasoningFormat | None
    max_calls: int | None = None
    include_reasoning: bool = True

    def adjusted(
        self, params: SamplingParams, request: ToolRequest | None, tokenizer: Tokenizer | None
    ) -> SamplingParams:
        """The parameters with what a required call needs (it goes before a response_format) and with markers kept."""
        wanted = request.constraint() if request is not None else None
        wanted = wanted or params.structured_outputs or self._strict_calls(request)
        return msgspec.structs.replace(
            params,
            structured_outputs=wanted,
            kept_special_tokens=self._kept_special_tokens(tokenizer),
        )

    def _strict_calls(self, request: ToolRequest | None) -> StructuredOutputs | None:
        """Free text in which the arguments of strict functions keep their schema, where that can be kept."""
        if request is None or not request.strict or self.tools is None or self.tools.frame is None:
            return None
        if importlib.util.find_spec("llguidance") is None:
            return None
        frame = self.tools.frame
        structures = [
            {
                "begin": frame[0].replace("NAME", name),
                "schema": dict(schema) if name in request.strict else {"type": "object"},
                "end": frame[1],
            }
            for name, schema in request.schemas.items()
        ]
        return StructuredOutputs(structural_tag={"structures": structures, "triggers": list(self.tools.markers)})

    def _kept_special_tokens(self, tokenizer: Tokenizer | None) -> tuple[str, ...]:
        """Markers that are control tokens, which must stay in the text to be seen."""
        if tokenizer is None:
            return ()
        words = self.tools.spellings if self.tools is not None else ()
        if self.reasoning is not None:
            words += self.reasoning.begin + self.reasoning.end
        return tuple(sorted(set(words) & set(tokenizer.special_spellings)))

    def parser(self, prompt_tail: str) -> AnswerParser:
        """For one answer."""
        return AnswerParser(
            self.tools, self.offered, reasoning=self.reasoning, prompt_tail=prompt_tail, max_calls=self.max_calls
        )

    def prompt_tail(self, request: OpenRequest, tokenizer: Tokenizer | None) -> str:
        """What `parser` is to know of the prompt."""
        if tokenizer is None or self.reasoning is None:
            return ""
        return tokenizer.decode(request.prompt_token_ids[-_TAIL_TOKENS:], skip_special_tokens=False)

    def new_id(self) -> str:
        """A call's id; Mistral's templates take nine letters and digits only."""
        if self.tools is not None and self.tools.short_ids:
            return "".join(secrets.choice(_SHORT_ID) for _ in range(9))
        return f"call_{uuid.uuid4().hex[:24]}"


class _Answer:
    """One choice of a stream, as far as it is told."""

    __slots__ = ("logprobs", "num_calls", "parser", "token_ids")

    def __init__(self, parser: AnswerParser):
        self.parser = parser
        self.num_calls = 0
        self.logprobs: list[TokenLogprobs] = []  # of text that is held
        self.token_ids: list[int] = []


class PartsRendering(ChatRendering):
    """/v1/chat/completions with calls or reasoning in the answers.

    Args:
        parts: how to read them; the rest is as of `Rendering`.
    """

    def __init__(self, *args: Any, parts: ChatParts):
        super().__init__(*args)
        self._parts = parts
        self._answers: dict[int, _Answer] = {}
        self._bare = self._plain
        self._plain = False

    def _parser(self) -> AnswerParser:
        return self._parts.parser(self._parts.prompt_tail(self._opened[0], self.tokenizer))

    # -- streams -------------------------------------------------------------------------------------------------

    def _chunk(self, update: Update, index: int) -> bytes:
        answer = self._answers.get(index)
        if answer is None:
            answer = self._answers[index] = _Answer(self._parser())
        pieces = answer.parser.feed(update.text)
        if update.finish_reason is not None:
            pieces += answer.parser.finish()
        elif self._bare and len(pieces) == 1 and pieces[0].kind == "content":
            return b"".join((self._heads[index], orjson.dumps(pieces[0].text), self._tail))
        answer.logprobs += update.logprobs or ()
        answer.token_ids += update.token_ids if self._body.return_token_ids else ()
        events = [self._delta_event(index, answer, delta) for delta in self._deltas(answer, pieces)]
        if update.finish_reason is not None:
            if answer.logprobs or answer.token_ids:
                events.append(self._delta_event(index, answer, {"content": ""}))
            end: dict[str, Any] = {"index": index, "delta": {}, "logprobs": None}
            end["finish_reason"] = _finish_reason(update.finish_reason, answer.num_calls)
            events.append(self.event(end | {"stop_reason": update.stop_reason}))
        return b"".join(events)

    def _delta_event(self, index: int, answer: _Answer, delta: dict[str, Any]) -> bytes:
        """One event; what belongs to the tokens goes with the first that their text makes."""
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        if answer.logprobs:
            choice["logprobs"] = self.logprobs(index, answer.logprobs)
        if self._body.return_token_ids:
            choice["token_ids"] = answer.token_ids
        answer.logprobs, answer.token_ids = [], []
        return self.event(choice)

    def _deltas(self, answer: _Answer, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        for kind, text in pieces:
            if kind == "content":
                deltas.append({"content": text})
            elif kind == "reasoning":
                if self._parts.include_reasoning:
                    deltas.append({"reasoning": text, "reasoning_content": text})
            elif kind == "call":
                answer.num_calls += 1
                deltas.append({"tool_calls": [{"index": answer.num_calls - 1, **_call(self._parts.new_id, text, "")}]})
            else:
                deltas.append({"tool_calls": [{"index": answer.num_calls - 1, "function": {"arguments": text}}]})
        return deltas

    # -- whole replies -------------------------------------------------------------------------------------------

    def message(self, sample: Sample) -> dict[str, Any]:
        """As of the base class."""
        texts = {"content": "", "reasoning": ""}
        calls: list[dict[str, Any]] = []
        for kind, text in read_answer(self._parser(), sample.text):
            if kind == "call":
                calls.append(_call(self._parts.new_id, text, ""))
            elif kind == "arguments":
                calls[-1]["function"]["arguments"] += text
            else:
                texts[kind] += text
        content: str | None = texts["content"]
        if not content and (calls or texts["reasoning"]):
            content = None
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if texts["reasoning"] and self._parts.include_reasoning:
            message |= {"reasoning": texts["reasoning"], "reasoning_content": texts["reasoning"]}
        if calls:
            message["tool_calls"] = calls
        return {"message": message}

    def ending(self, sample: Sample, choice: dict[str, Any]) -> dict[str, Any]:
        """As of the base class."""
        num_calls = len(choice["message"].get("tool_calls", ()))
        return super().ending(sample, choice) | {"finish_reason": _finish_reason(sample.finish_reason, num_calls)}


def _call(new_id: Callable[[], str], name: str, arguments: str) -> dict[str, Any]:
    return {"id": new_id(), "type": "function", "function": {"name": name, "arguments": arguments}}


def _finish_reason(reason: str | None, num_calls: int) -> str | None:
    return "tool_calls" if reason == "stop" and num_calls else reason
