"""One TCP connection: uvicorn's HTTP protocol with bounds on heads, on numbers and on waiting."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from octavo.server.chunk_writer import ChunkWriter, Outbox
from octavo.server.http import HttpError, error_body
from octavo.server.limits import RESERVED_CONNECTIONS, ConnectionLimits

_PHRASES = {400: b"Bad Request", 408: b"Request Timeout", 414: b"URI Too Long", 503: b"Service Unavailable"}
_PHRASES |= {431: b"Request Header Fields Too Large"}
_KEEPALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))  # a peer that vanished: 2 minutes


_LINGER_SECONDS = 1.0
_MOST_IGNORED = 4 << 20


class _HeadRefused(Exception):
    """Unwinds httptools' parser."""


class Connection(HttpToolsProtocol):
    """Serves the requests of one connection, in turn.

    A request's `scope["state"]["crowded"]` is true where the connection is one too many (`ConnectionLimits`);
    `scope["state"]["writer"]` is its `ChunkWriter`.

    Args:
        limits: what it may take.
        outbox: of all connections of the event loop; the rest as uvicorn wants it.
    """

    def __init__(self, *args: Any, limits: ConnectionLimits, outbox: Outbox, **options: Any):
        super().__init__(*args, **options)
        self._limits = limits
        self._outbox = outbox
        self._in_head = True
        self._head_bytes = 0
        self._crowded = False
        self._ignored = 0
        self._unparsed = 0
        self._refusal: HttpError | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come. Small packets are sent at once (a token is one), and vanished peers are noticed."""
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE:
                if hasattr(socket, name):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        super().connection_made(transport)
        self._crowded = len(self.connections) > self._limits.connections
        self._await_head()
        if len(self.connections) > self._limits.connections + RESERVED_CONNECTIONS:
            self._refuse(503, "overloaded", "There are too many connections.", "Try again later, with fewer.")

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or we have closed."""
        self._cancel_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request. A head that grows beyond its bound is not waited for."""
        if self._refusal is not None:  # read, so that the refusal is not lost to a reset, but not for long
            self._ignored += len(data)
            if self._ignored > _MOST_IGNORED:
                self.transport.abort()
            return
        if self._unparsed:
            self._take_body(data)
            return
        if self._in_head:
            self._head_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stopped:
            self._take_body(data[stopped.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("")
            return
        if self._in_head and self._head_bytes > self._limits.head_bytes and self._refusal is None:
            self._refuse(431, "headers_too_large", *self._too_large())

    # -- the parser's calls --------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The first byte of a request. It must not come before the reply to the one before: while a request waits
        behind another one nothing is read, so nobody would see that the client has gone."""
        if self.cycle is not None and not self.cycle.response_complete:
            message = "A request came before the reply to the one before."
            self._refuse_in_parser(400, "pipelined", message, "Wait for each reply, or use several connections.")
        super().on_message_begin()
        if self._crowded:
            self.scope["state"]["crowded"] = True
        self._in_head = True
        if self._head_timer is None:
            self._await_head()

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        super().on_url(url)
        if len(self.url) > self._limits.target_bytes:
            message = f"The path and query have more than {self._limits.target_bytes} bytes."
            self._refuse_in_parser(414, "uri_too_long", message, "Send values in the body.")

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head = False
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        size = sum(len(name) + len(value) + 4 for name, value in self.headers)
        if len(self.headers) > self._limits.headers or size > self._limits.head_bytes:
            self._refuse_in_parser(431, "headers_too_large", *self._too_large())
        super().on_headers_complete()
        self.scope["state"]["writer"] = ChunkWriter(self.cycle, self.flow, self.transport, self._outbox)
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            length = dict(self.headers).get(b"content-length", b"0")
            self._unparsed = int(length) if length.isdigit() and len(length) <= 18 else 0
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """The body is whole, unless the parser only thinks so."""
        if not self._unparsed:
            super().on_message_complete()

    def _take_body(self, data: bytes) -> None:
        """The body of a request that offered another protocol: the offer is ignored, but the parser stops at it."""
        part = data[: self._unparsed]
        self._unparsed -= len(part)
        if part:
            self.on_body(part)
            if not self._unparsed:
                super().on_message_complete()

    def _too_large(self) -> tuple[str, str]:
        limits = self._limits
        return f"The head has more than {limits.headers} headers or {limits.head_bytes} bytes.", "Send fewer headers."

    # -- time ----------------------------------------------------------------------------------------------------

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self._limits.head_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self._head_bytes:  # nothing was asked, so nothing is answered
            self.transport.close()
            return
        self._refuse(408, "request_timeout", "The request's head did not come in time.", "Send it in one go.")

    def pause_writing(self) -> None:
        """What was written for the client is not read: that may last a while, not for ever."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def _cancel_timers(self) -> None:
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._write_timer = None

    # -- refusing ------------------------------------------------------------------------------------------------

    def _refuse_in_parser(self, status: int, code: str, message: str, fix: str) -> None:
        self._refusal = HttpError(status, code, message, fix=fix)
        raise _HeadRefused  # httptools makes a parser's error of it, for which uvicorn calls `send_400_response`

    def _refuse(self, status: int, code: str, message: str, fix: str) -> None:
        self._refusal = HttpError(status, code, message, fix=fix)
        self.send_400_response("")

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong, in JSON, and close. Nothing is said into the middle of a reply."""
        self._cancel_timers()
        error = self._refusal or HttpError(400, "invalid_http", "This is not HTTP/1.1.", fix="Use a client that is.")
        self._refusal = error
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = orjson.dumps(error_body(error))
            head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n"
            extra = b"retry-after: 1\r\n" if error.status == 503 else b""
            phrase = _PHRASES[error.status]
            self.transport.write(head % (error.status, phrase, len(body)) + extra + b"\r\n" + body)
            if self.transport.can_write_eof():
                self.transport.write_eof()
                self.loop.call_later(_LINGER_SECONDS, self.transport.close)
                return
        self.transport.close()
