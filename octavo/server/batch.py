"""Files of requests, answered by the server's own handlers, in this process and without a port."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from octavo.errors import ConfigError, EngineDeadError, InvalidRequestError
from octavo.server.app import App
from octavo.server.batch_files import (
    ID_PREFIX,
    BatchLine,
    InputLine,
    LineError,
    LineReply,
    OutputFile,
    OutputLine,
    read_requests,
)
from octavo.server.http import Message, error_body
from octavo.server.openapi import ENDPOINTS

URLS = tuple(each.path for each in ENDPOINTS if each.body is not None and each.path.startswith("/v1/"))
_TRIES = 3
_PAUSE_SECONDS = 1.0
_POLL_SECONDS = 0.1

OnLine = Callable[[int], None]


@dataclass(slots=True)
class BatchSummary:
    """What became of the lines.

    Attributes:
        skipped: answered by an earlier run, or found bad by it.
        succeeded: status 200; refused: 4xx; failed: 5xx, to be asked again by another run.
        bad_lines: that are no requests.
    """

    skipped: int = 0
    succeeded: int = 0
    refused: int = 0
    failed: int = 0
    bad_lines: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    codes: dict[str, int] = field(default_factory=dict)

    @property
    def num_lines(self) -> int:
        """Lines in all."""
        return self.skipped + self.succeeded + self.refused + self.failed + self.bad_lines


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    request_id: str
    body: bytes


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    input_tokens: int = 0
    completion_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens_details: _Details = _Details()
    input_tokens_details: _Details = _Details()


class _Code(msgspec.Struct):
    code: str | None = None


class _Counted(msgspec.Struct):
    usage: _Usage | None = None
    error: _Code | None = None


class _Streams(msgspec.Struct):
    stream: Any = None


async def run_batch(
    app: App, source: Path, destination: Path, *, max_in_flight: int, on_line: OnLine | None = None
) -> BatchSummary:
    """Answer every line of a file that its output has no answer to yet.

    Args:
        app: its engine is loaded.
        destination: is appended to, a line for each that ends, in the order in which they end.
        max_in_flight: requests that are open at a time.
        on_line: told of each line that is done, with the tokens that it generated.

    Raises:
        ConfigError: a file cannot be read or written, or is not what it should be.
        EngineDeadError: the engine ended for good; what was answered is kept.
    """
    if destination.exists() and source.exists() and destination.samefile(source):
        raise ConfigError("Input and output are the same file.", fix="Choose another output.", param="output")
    begun = time.monotonic()
    with closing(OutputFile(destination)) as output:
        batch = _Batch(app, output, max_in_flight, on_line or (lambda num_tokens: None))
        try:
            async with asyncio.TaskGroup() as group:
                for line in read_requests(source, app.options.max_body_bytes):
                    await batch.begin(group, line)
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        batch.summary.seconds = time.monotonic() - begun
        return batch.summary


class _Batch:
    def __init__(self, app: App, output: OutputFile, max_in_flight: int, on_line: OnLine):
        self._app = app
        self._output = output
        self._on_line = on_line
        self._slots = asyncio.Semaphore(max_in_flight)
        self.summary = BatchSummary()

    async def begin(self, group: asyncio.TaskGroup, line: InputLine) -> None:
        """Start on a line as soon as there is room for it."""
        answered, summary = self._output.answered, self.summary
        if line.request is None:
            if line.number in answered.lines:
                summary.skipped += 1
            else:
                summary.bad_lines += 1
                self._write(line.custom_id, error=_line_error(line))
            self._on_line(0)
        elif line.request.custom_id in answered.custom_ids:
            summary.skipped += 1
            self._on_line(0)
        else:
            await self._slots.acquire()
            group.create_task(self._answer(line.request))

    async def _answer(self, request: BatchLine) -> None:
        try:
            reply = await self._reply(request)
        finally:
            self._slots.release()
        self._write(request.custom_id, LineReply(reply.status, reply.request_id, msgspec.Raw(reply.body)))
        self._on_line(self._count(reply))

    async def _reply(self, request: BatchLine) -> _Reply:
        """The handler's reply. An overload passes, and so does a restart of the engine: those are waited for."""
        if request.url not in URLS:
            return _refusal("url", f"url cannot be {request.url[:100]!r}.", f"It is one of {', '.join(URLS)}.")
        if _wants_stream(bytes(request.body)):
            return _refusal("stream", "stream cannot be true: the answers of a batch are whole.", "Leave it out.")
        for tries_left in reversed(range(_TRIES)):
            reply = await ask(self._app, request.url, bytes(request.body))
            if reply.status != 503:
                break
            if self._app.llm.state in ("dead", "closed"):
                raise self._app.llm.error or EngineDeadError("The engine has ended.", fix="Run the command again.")
            if tries_left:
                await asyncio.sleep(_PAUSE_SECONDS)
                while self._app.llm.state == "restarting":
                    await asyncio.sleep(_POLL_SECONDS)
        return reply

    def _write(self, custom_id: str | None, response: LineReply | None = None, error: LineError | None = None) -> None:
        self._output.write(OutputLine(ID_PREFIX + uuid.uuid4().hex, custom_id, response, error))

    def _count(self, reply: _Reply) -> int:
        """Add a reply to the summary; returns the tokens it generated."""
        summary = self.summary
        told = _told(reply.body)
        if reply.status == 200:
            summary.succeeded += 1
        elif reply.status < 500:
            summary.refused += 1
        else:
            summary.failed += 1
        if told.error is not None:
            code = told.error.code or str(reply.status)
            summary.codes[code] = summary.codes.get(code, 0) + 1
        usage = told.usage or _Usage()
        generated = usage.completion_tokens + usage.output_tokens
        summary.prompt_tokens += usage.prompt_tokens + usage.input_tokens
        summary.cached_tokens += usage.prompt_tokens_details.cached_tokens + usage.input_tokens_details.cached_tokens
        summary.completion_tokens += generated
        return generated


async def ask(app: App, path: str, body: bytes) -> _Reply:
    """POST a body to the application, without a network."""
    parts: list[bytes] = []
    head: list[Message] = []
    unread = [body]

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]  # nobody hangs up

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            head.append(message)
        else:
            parts.append(message.get("body", b""))

    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await app({"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send)
    names = dict(head[0]["headers"])
    return _Reply(head[0]["status"], names[b"x-request-id"].decode(), b"".join(parts))


def _line_error(line: InputLine) -> LineError:
    error = line.error or InvalidRequestError("It is no request.")
    return LineError(error.code, f"Line {line.number}: {error}", line.number)


def _refusal(param: str, message: str, fix: str) -> _Reply:
    error = InvalidRequestError(message, fix=fix, param=param, code="unsupported_value")
    return _Reply(error.status, uuid.uuid4().hex, msgspec.json.encode(error_body(error)))


def _told(body: bytes) -> _Counted:
    try:
        return msgspec.json.decode(body, type=_Counted)
    except msgspec.ValidationError:
        return _Counted()  # an endpoint that counts in other words


def _wants_stream(body: bytes) -> bool:
    try:
        return msgspec.json.decode(body, type=_Streams).stream is True
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False  # the handler says what is wrong
