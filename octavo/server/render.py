"""Updates and finished requests in the words of OpenAI's API.

The usual chunk of a stream is three pieces of bytes joined: what comes before the text, made once for each choice; the
text as JSON; what comes after. Everything rarer goes through dicts.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import orjson

from octavo.errors import OctavoError
from octavo.frontend.sample import OpenRequest, Sample, Update
from octavo.frontend.tokenizer import Tokenizer
from octavo.request import TokenLogprobs
from octavo.server.http import error_body
from octavo.server.logprobs import chat_logprobs, completion_logprobs, prompt_logprobs
from octavo.server.protocol import CompletionBody, GenerationBody
from octavo.server.timing import timing

DONE = b"data: [DONE]\n\n"
_FILL_BYTES = 64  # events that are filled up differ in length by multiples of this


class Reply(Protocol):
    """A reply in one API's words: `opening`, `chunks` and `closing` for a stream, `whole` for all at once.

    Attributes:
        timing: tell where the time went.
    """

    timing: bool

    def opening(self) -> bytes:
        """What comes before any token."""

    def chunks(self, updates: Iterable[Update]) -> bytes:
        """Events for updates, in their order; none of them tells of a sample that failed."""

    def closing(self) -> bytes:
        """The end of a stream."""

    def failure(self, error: OctavoError) -> bytes:
        """The end of a stream that breaks off."""

    def whole(self) -> dict[str, Any]:
        """The reply to a body that does not stream, all of whose samples ended well."""


class Rendering:
    """One reply to one body: `opening`, `chunks`, `closing` for a stream, `whole` for all at once.

    Args:
        envelope: `id`, `created`, `model`, `system_fingerprint`.
        opened: the body's requests in the order of its prompts; choices are numbered through them.

    Attributes:
        timing: tell where the time went.
    """

    kind = ""
    chunk_kind = ""
    text_key = b""  # what of a choice holds the text, as JSON up to the text
    text_end = b""

    def __init__(
        self,
        envelope: dict[str, Any],
        body: GenerationBody,
        opened: Sequence[OpenRequest],
        tokenizer: Tokenizer | None,
    ):
        self._envelope = envelope
        self._body = body
        self._opened = opened
        self.tokenizer = tokenizer
        self.n = body.n or 1
        self._first = {request.handle: place * self.n for place, request in enumerate(opened)}
        self.num_choices = self.n * len(opened)
        self.timing = bool(body.timing)
        self._usage = b',"usage":null' if body.include_usage else b""
        before = orjson.dumps({"id": envelope["id"], "object": self.chunk_kind} | envelope)[:-1]
        self._before = b"data: " + before + b',"choices":['
        self._after = b"]" + self._usage + b"}\n\n"
        self._heads = [self._before + b'{"index":%d,' % index + self.text_key for index in range(self.num_choices)]
        self._tail = self.text_end + b',"logprobs":null,"finish_reason":null}' + self._after
        self._num_told = 0  # tokens, as far as they do not go the short way
        self._varies = body.continuous_usage or body.obfuscates  # every event has something of its own
        self._plain = not body.return_token_ids and not self.wants_logprobs and not self._varies

    @property
    def wants_logprobs(self) -> bool:
        """Whether choices have logprobs."""
        return bool(self._opened and self._opened[0].samples[0].logprobs is not None)

    # -- streams -------------------------------------------------------------------------------------------------

    def opening(self) -> bytes:
        """What comes before any token."""
        return b""

    def chunks(self, updates: Iterable[Update]) -> bytes:
        """Events for updates, in their order."""
        parts: list[bytes] = []
        heads, first, dumps, tail, plain = self._heads, self._first, orjson.dumps, self._tail, self._plain
        for update in updates:
            if plain and update.finish_reason is None:
                if update.text:
                    parts += (heads[first[update.handle] + update.sample.index], dumps(update.text), tail)
            else:
                self._num_told += len(update.token_ids)
                parts.append(self._chunk(update, first[update.handle] + update.sample.index))
        return b"".join(parts)

    def _chunk(self, update: Update, index: int) -> bytes:
        """Events for an update that brings more than text; the end has an event of its own."""
        event = b""
        if update.text or update.logprobs or (self._body.return_token_ids and update.token_ids):
            choice: dict[str, Any] = {"index": index, **self.delta(update.text)}
            choice["logprobs"] = self.logprobs(index, update.logprobs) if update.logprobs else None
            choice["finish_reason"] = None
            if self._body.return_token_ids:
                choice["token_ids"] = update.token_ids
            event = self.event(choice | self.beginning(index, update.request))
        if update.finish_reason is not None:
            end: dict[str, Any] = {"index": index, **self.delta(None), "logprobs": None}
            end |= {"finish_reason": update.finish_reason, "stop_reason": update.stop_reason}
            event += self.event(end | self.beginning(index, update.request))
        return event

    def beginning(self, index: int, request: OpenRequest) -> dict[str, Any]:
        """Fields of a choice's first event alone."""
        return {}

    def event(self, choice: dict[str, Any], extra: bytes = b"") -> bytes:
        """One event with one choice; `extra` is JSON to go beside the choices."""
        usage = self._usage
        if self._body.continuous_usage:
            usage = b',"usage":' + orjson.dumps(self.usage(self._num_told))
        event = self._before + orjson.dumps(choice) + b"]" + extra + usage
        if self._body.obfuscates:
            event += b',"obfuscation":"%s"' % secrets.token_hex(_FILL_BYTES)[: -len(event) % _FILL_BYTES].encode()
        return event + b"}\n\n"

    def closing(self) -> bytes:
        """Usage and times, if they are wanted, and the end."""
        if not self._body.include_usage and not self.timing:
            return DONE
        usage = b',"usage":' + orjson.dumps(self.usage()) if self._body.include_usage else b""
        times = b',"timing":' + orjson.dumps(timing(self._opened)) if self.timing else b""
        return self._before + b"]" + usage + times + b"}\n\n" + DONE

    def failure(self, error: OctavoError) -> bytes:
        """The end of a stream that breaks off."""
        return b"data: " + orjson.dumps(error_body(error)) + b"\n\n"

    def delta(self, text: str | None) -> dict[str, Any]:
        """The part of a choice that holds new text; None is the end."""
        raise NotImplementedError

    def logprobs(self, index: int, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """Logprobs of a choice's newest tokens."""
        raise NotImplementedError

    # -- whole replies -------------------------------------------------------------------------------------------

    def usage(self, most: int | None = None) -> dict[str, Any]:
        """Token counts of all requests, with at most so many generated tokens: those that were told."""
        prompt = sum(len(request.prompt_token_ids) for request in self._opened)
        completion = sum(self.num_generated(sample) for request in self._opened for sample in request.samples)
        completion = completion if most is None else min(most, completion)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(request.num_cached_tokens for request in self._opened)},
        }

    def num_generated(self, sample: Sample) -> int:
        """Tokens of a sample that count."""
        return len(sample.token_ids)

    def whole(self) -> dict[str, Any]:
        """The reply to a body that does not stream."""
        choices = []
        for request in self._opened:
            for rank, sample in enumerate(self.chosen(request)):
                index = self._first[request.handle] + rank
                choice = {"index": index, **self.message(sample), "logprobs": None}
                if sample.logprobs is not None and self.wants_logprobs:
                    choice["logprobs"] = self.whole_logprobs(index, sample)
                choice |= self.ending(sample, choice)
                if self._body.return_token_ids:
                    choice["token_ids"] = sample.token_ids
                choices.append(choice | self.choice_extras(request))
        envelope = {"id": self._envelope["id"], "object": self.kind, **self._envelope, "choices": choices}
        times = {"timing": timing(self._opened)} if self.timing else {}
        return envelope | {"usage": self.usage()} | times | self.extras()

    def chosen(self, request: OpenRequest) -> Sequence[Sample]:
        """The samples that come back, in the order of their choices."""
        return request.samples

    def message(self, sample: Sample) -> dict[str, Any]:
        """The part of a choice that holds the text."""
        raise NotImplementedError

    def ending(self, sample: Sample, choice: dict[str, Any]) -> dict[str, Any]:
        """How a sample ended, `choice` being what is told of it so far."""
        return {"finish_reason": sample.finish_reason, "stop_reason": sample.stop_reason}

    def whole_logprobs(self, index: int, sample: Sample) -> dict[str, Any]:
        """Logprobs of all of a sample."""
        return self.logprobs(index, sample.logprobs or [])

    def choice_extras(self, request: OpenRequest) -> dict[str, Any]:
        """Further fields of each of a request's choices."""
        return {}

    def extras(self) -> dict[str, Any]:
        """Further fields of the reply."""
        return {}

    def prompt_fields(self, request: OpenRequest) -> dict[str, Any]:
        """What was asked for about the prompt: its ids, its logprobs."""
        fields: dict[str, Any] = {}
        if self._body.return_token_ids:
            fields["prompt_token_ids"] = request.prompt_token_ids
        if self._body.prompt_logprobs is not None and request.prompt_logprobs is not None:
            fields["prompt_logprobs"] = prompt_logprobs(request.prompt_logprobs, self.tokenizer)
        return fields


class ChatRendering(Rendering):
    """/v1/chat/completions."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    text_key = b'"delta":{"content":'
    text_end = b"}"

    def opening(self) -> bytes:
        """The role, once for each choice."""
        extra = b""
        if self._body.return_token_ids:
            extra = b',"prompt_token_ids":' + orjson.dumps(self._opened[0].prompt_token_ids)
        return b"".join(
            self.event(
                {
                    "index": index,
                    "delta": {"role": "assistant", "content": ""},
                    "logprobs": None,
                    "finish_reason": None,
                },
                extra,
            )
            for index in range(self.num_choices)
        )

    def delta(self, text: str | None) -> dict[str, Any]:
        """As of the base class."""
        return {"delta": {} if text is None else {"content": text}}

    def logprobs(self, index: int, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """As of the base class."""
        return chat_logprobs(entries, self.tokenizer, as_ids=bool(self._body.return_tokens_as_token_ids))

    def message(self, sample: Sample) -> dict[str, Any]:
        """As of the base class."""
        return {"message": {"role": "assistant", "content": sample.text, "refusal": None}}

    def extras(self) -> dict[str, Any]:
        """As of the base class."""
        return self.prompt_fields(self._opened[0])


class CompletionRendering(Rendering):
    """/v1/completions, with `echo`: each choice begins with the prompt, and so do its logprobs.

    Args:
        echoes: the prompts' texts, one for each request; empty without echo.
        silent: `max_tokens` is 0, which only echo can serve: one token was generated and is left out.
    """

    kind = chunk_kind = "text_completion"
    text_key = b'"text":'

    def __init__(self, *args: Any, echoes: Sequence[str] = (), silent: bool = False):
        super().__init__(*args)
        self._echoes = echoes
        self._silent = silent
        self._offsets = [0] * self.num_choices  # characters that logprobs have told of
        self._echoed: set[int] = set()
        self._begun: set[int] = set()
        self._plain = self._plain and not echoes

    def _chunk(self, update: Update, index: int) -> bytes:
        event = b""
        if self._echoes and index not in self._echoed:
            self._echoed.add(index)
            logprobs = None
            if self.wants_logprobs:
                logprobs = self._prompt_part(index, update.request)
            choice = {"index": index, "text": self._echoes[index // self.n], "logprobs": logprobs}
            event = self.event(choice | {"finish_reason": None})
        if self._silent:
            update.text, update.logprobs, update.token_ids = "", None, []
        return event + super()._chunk(update, index)

    def beginning(self, index: int, request: OpenRequest) -> dict[str, Any]:
        """As of the base class."""
        if not self._body.return_token_ids or index in self._begun:
            return {}
        self._begun.add(index)
        return {"prompt_token_ids": request.prompt_token_ids}

    def delta(self, text: str | None) -> dict[str, Any]:
        """As of the base class."""
        return {"text": text or ""}

    def logprobs(self, index: int, entries: Sequence[TokenLogprobs | None]) -> dict[str, Any]:
        """As of the base class."""
        as_ids = bool(self._body.return_tokens_as_token_ids)
        told, self._offsets[index] = completion_logprobs(entries, self.tokenizer, self._offsets[index], as_ids=as_ids)
        return told

    def _prompt_part(self, index: int, request: OpenRequest) -> dict[str, Any]:
        as_ids = bool(self._body.return_tokens_as_token_ids)
        first = request.prompt_token_ids[0] if self.tokenizer is not None or as_ids else None
        entries = request.prompt_logprobs or [None]
        told, self._offsets[index] = completion_logprobs(
            entries, self.tokenizer, self._offsets[index], first, as_ids=as_ids
        )
        return told

    def num_generated(self, sample: Sample) -> int:
        """As of the base class."""
        return 0 if self._silent else super().num_generated(sample)

    @property
    def wants_logprobs(self) -> bool:
        """As of the base class; with `best_of` the engine tells them for the choice alone."""
        body = self._body
        return super().wants_logprobs and isinstance(body, CompletionBody) and body.logprobs is not None

    def chosen(self, request: OpenRequest) -> Sequence[Sample]:
        """With `best_of`: those with the highest logprob per token, the best first."""
        body, samples = self._body, request.samples
        if not (isinstance(body, CompletionBody) and body.chooses):
            return samples
        return sorted(samples, key=_mean_logprob, reverse=True)[: self.n]

    def message(self, sample: Sample) -> dict[str, Any]:
        """As of the base class."""
        text = "" if self._silent else sample.text
        place = self._first[sample.request.handle] // self.n
        return {"text": self._echoes[place] + text if self._echoes else text}

    def whole_logprobs(self, index: int, sample: Sample) -> dict[str, Any]:
        """As of the base class."""
        told = self._prompt_part(index, sample.request) if self._echoes else {}
        entries = [] if self._silent else sample.logprobs or []
        new = self.logprobs(index, entries)
        return {key: told.get(key, []) + values for key, values in new.items()}

    def choice_extras(self, request: OpenRequest) -> dict[str, Any]:
        """As of the base class."""
        return self.prompt_fields(request)


def _mean_logprob(sample: Sample) -> float:
    entries = sample.logprobs or []
    return sum(entry.logprob for entry in entries) / len(entries) if entries else -math.inf
