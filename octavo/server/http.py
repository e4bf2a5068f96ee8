"""One HTTP exchange over ASGI: reading a bounded body, replying, streaming, and noticing that the client has gone."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import Any

import orjson

from octavo.errors import OctavoError, OverloadedError
from octavo.frontend.sample import OpenRequest
from octavo.server.chunk_writer import ChunkWriter

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

_LINGER_SECONDS = 1.0
_MOST_IGNORED = 4 << 20
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_TYPES |= {405: "invalid_request_error", 413: "invalid_request_error", 415: "invalid_request_error"}
_TYPES |= {408: "invalid_request_error", 414: "invalid_request_error", 431: "invalid_request_error"}
_TYPES |= {429: "rate_limit_error", 500: "server_error", 503: "overloaded_error", 504: "timeout_error"}
_BYTES_PER_SECOND = 4096  # a body that comes slower than this for long is not waited for


class ClientGoneError(Exception):
    """The client has hung up; there is nobody to answer."""


class HttpError(OctavoError):
    """A reply that only HTTP knows, as 405 or 413."""

    def __init__(self, status: int, code: str, message: str, *, fix: str = "", allow: str = ""):
        super().__init__(message, fix=fix, code=code)
        self.status = status
        self.allow = allow


class Exchange:
    """One request and its reply.

    Attributes:
        request_id: the client's `x-request-id` if it is a decent one, else made up; every reply carries it.
        status: of the reply; 0 before it began.
        gone: the client has hung up.
        held: bytes of the body.
        begun: when its head had come, `time.monotonic()`.
        opened: the engine's requests that it became.
        streaming: the reply is a stream of events.
        error_body: how an error is told.
        also: headers of every reply to it.
        keep_alive: seconds without an event after which a stream of events gets a comment; 0 is never.
        writer: a shorter way to its connection for parts of the reply, where there is one.
    """

    __slots__ = (
        "_receive",
        "also",
        "begun",
        "error_body",
        "gone",
        "headers",
        "held",
        "keep_alive",
        "method",
        "opened",
        "path",
        "request_id",
        "scope",
        "send",
        "status",
        "streaming",
        "writer",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send):
        self.scope = scope
        self.send = send
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self.headers.get(b"x-request-id", b"")
        self.request_id = given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.status = 0
        self.gone = False
        self.keep_alive = 15.0
        self.held = 0
        self.error_body = error_body
        self.also: Headers = ()
        self.begun = time.monotonic()
        self.streaming = False
        self.opened: Sequence[OpenRequest] = ()
        self.writer: ChunkWriter | None = scope.get("state", {}).get("writer")
        self._receive = receive

    def release(self) -> None:
        """The end: let go of what refers to itself in a circle, so that it is freed now and needs no collection."""
        self.writer = None
        self.scope.get("state", {}).pop("writer", None)
        for request in self.opened:
            request.release()

    async def body(self, limit: int, timeout: float = 30.0, hold: Callable[[int], None] | None = None) -> bytes:
        """The request's body.

        Args:
            limit: bytes.
            timeout: seconds it may take, beside one for each 4 KiB that have come.
            hold: told of the bytes of each part, which are `held` from then on; what it raises ends the reading.

        Raises:
            HttpError: it is larger (413), comes too slowly (408), or is not said to be plain JSON (415).
            ClientGoneError: the client hung up while sending it.
        """
        self._check_type()
        length = self.headers.get(b"content-length", b"")
        if length.isdigit() and (len(length) > 18 or int(length) > limit):
            raise _too_large(limit)
        chunks: list[bytes] = []
        size, more = 0, True
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while more:
            try:
                async with asyncio.timeout_at(begun + timeout + size / _BYTES_PER_SECOND):
                    message = await self._receive()
            except TimeoutError:
                raise HttpError(
                    408, "request_timeout", "The body did not come in time.", fix="Send it faster, or less of it."
                ) from None
            if message["type"] == "http.disconnect":
                self.gone = True
                raise ClientGoneError
            part = message.get("body", b"")
            if hold is not None:
                hold(len(part))
                self.held += len(part)
            chunks.append(part)
            size += len(part)
            more = message.get("more_body", False)
            if size > limit:
                raise _too_large(limit)
        return b"".join(chunks)

    def _check_type(self) -> None:
        kind = self.headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if kind != b"application/json" and not kind.endswith(b"+json"):
            raise HttpError(415, "unsupported_media_type", "The body's type is not JSON.", fix=_CONTENT_TYPE_FIX)
        if self.headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            message = "Compressed bodies are not taken."
            raise HttpError(415, "unsupported_encoding", message, fix="Send it without Content-Encoding.")

    async def wait_gone(self) -> None:
        """Return when the client has hung up. Only after `body`."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True

    async def start(self, status: int, content_type: bytes, headers: Headers = ()) -> None:
        """Send status and headers."""
        self.status = status
        taken = b"%d" % (1000 * (time.monotonic() - self.begun))
        own = [(b"x-request-id", self.request_id.encode()), (b"openai-processing-ms", taken)]
        lines = [(b"content-type", content_type), *own, *self.also, *headers]
        await self.send({"type": "http.response.start", "status": status, "headers": lines})

    async def send_part(self, body: bytes) -> None:
        """Send a part of the reply that is not the last."""
        if not body:
            return
        if self.writer is not None:
            self.writer.flush()
        await self.send({"type": "http.response.body", "body": body, "more_body": True})

    async def send_last(self, body: bytes) -> None:
        """Send the last part of the reply."""
        if self.writer is not None:
            self.writer.flush()
        await self.send({"type": "http.response.body", "body": body})

    async def reply(self, status: int, body: bytes, content_type: bytes, headers: Headers = ()) -> None:
        """Send a whole reply."""
        await self.start(status, content_type, [(b"content-length", b"%d" % len(body)), *headers])
        await self.send_last(b"" if self.method == "HEAD" else body)

    async def json(self, status: int, content: Any, headers: Headers = ()) -> None:
        """Send a whole reply in JSON."""
        await self.reply(status, orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS), b"application/json", headers)

    async def error(self, error: OctavoError) -> None:
        """Answer with an error, if there still is somebody and nothing has been sent."""
        if self.gone or self.status:
            return
        if error.status not in (408, 413):
            await self.json(error.status, self.error_body(error), _error_headers(error))
            return
        body = orjson.dumps(self.error_body(error))
        length = (b"content-length", b"%d" % len(body))
        await self.start(error.status, b"application/json", [length, *_error_headers(error)])
        await self.send_part(body)
        await self._linger()
        await self.send_last(b"")

    async def _linger(self) -> None:
        """Read on for a moment: closing with bytes unread would reset the connection and lose the reply."""
        ignored = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while ignored < _MOST_IGNORED:
                    message = await self._receive()
                    ignored += len(message.get("body", b""))
                    if not message.get("more_body"):
                        return


def _too_large(limit: int) -> HttpError:
    message = f"The body has more than {limit} bytes."
    return HttpError(413, "body_too_large", message, fix="Send less, or raise --max-body-bytes.")


_CONTENT_TYPE_FIX = "Set the header Content-Type: application/json."


def error_body(error: OctavoError) -> dict[str, Any]:
    """OpenAI's error object, in its envelope."""
    kind = _TYPES.get(error.status, "server_error")
    if error.status == 503 and not isinstance(error, OverloadedError):
        kind = "server_error"
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}


def _error_headers(error: OctavoError) -> list[tuple[bytes, bytes]]:
    if isinstance(error, OverloadedError):
        after = b"%d" % max(1, math.ceil(error.retry_after))
        return [(b"retry-after", after), (b"x-should-retry", b"true")]
    if isinstance(error, HttpError) and error.status == 405:
        return [(b"allow", error.allow.encode())]
    if error.status == 401:
        return [(b"www-authenticate", b"Bearer")]
    if error.status in (408, 413):
        return [(b"connection", b"close")]
    return []


def shown(error: Exception) -> OctavoError:
    """What a client may know of an exception: Octavo's own errors as they are, of others nothing."""
    if isinstance(error, OctavoError):
        return error
    return OctavoError("The server failed on this request.", fix="Its log says more, under the request's id.")


async def cancel(task: asyncio.Task[None]) -> None:
    """End a helper task and forget what became of it."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
