"""A small HTTP/1.1 client for server-sent events: it must cost less than the server that it measures."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from octavo.errors import ConfigError

_MAX_LINE = 1 << 22


class HttpError(Exception):
    """The server answered with another status than 200, or not in HTTP."""


@dataclass(frozen=True)
class Endpoint:
    """Where requests go."""

    host: str
    port: int
    path: str
    tls: bool

    @classmethod
    def of(cls, url: str, path: str) -> Endpoint:
        """From a server's root, with or without /v1, and a path below it.

        Raises:
            ConfigError: the URL is not http or https.
        """
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is no address of a server.", fix="Write http://HOST:PORT.", param="base_url")
        root = parts.path.rstrip("/").removesuffix("/v1")
        tls = parts.scheme == "https"
        return cls(parts.hostname, parts.port or (443 if tls else 80), root + path, tls)

    def head(self, body_length: int, api_key: str | None, method: str = "POST") -> bytes:
        """A request's first lines."""
        lines = [
            f"{method} {self.path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Accept: text/event-stream, application/json",
            "Connection: close",
        ]
        if method == "POST":
            lines += ["Content-Type: application/json", f"Content-Length: {body_length}"]
        if api_key:
            lines.append(f"Authorization: Bearer {api_key}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def stream_events(endpoint: Endpoint, body: bytes, api_key: str | None = None) -> AsyncIterator[bytes]:
    """POST a body and yield the data of each event as it arrives, up to `[DONE]` or the end.

    Raises:
        HttpError: the status is not 200 (the message has the reply's body), or the reply is no HTTP.
        OSError, asyncio.IncompleteReadError: the connection failed or broke.
    """
    reader, writer = await _connect(endpoint)
    try:
        writer.write(endpoint.head(len(body), api_key) + body)
        await writer.drain()
        chunks = await _reply(reader)
        rest = b""
        async for chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    data = line[5:].strip()
                    if data == b"[DONE]":
                        return
                    yield data
    finally:
        writer.close()


async def get(endpoint: Endpoint, api_key: str | None = None) -> bytes:
    """GET the endpoint and return the body.

    Raises:
        HttpError, OSError: as `stream_events`.
    """
    reader, writer = await _connect(endpoint)
    try:
        writer.write(endpoint.head(0, api_key, method="GET"))
        await writer.drain()
        return b"".join([chunk async for chunk in await _reply(reader)])
    finally:
        writer.close()


async def _connect(endpoint: Endpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.create_default_context() if endpoint.tls else None
    return await asyncio.open_connection(endpoint.host, endpoint.port, ssl=context, limit=_MAX_LINE)


async def _reply(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Read the head; return the body's pieces."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status_line, *header_lines = head.split("\r\n")
    fields = status_line.split(" ", 2)
    if len(fields) < 2 or not fields[0].startswith("HTTP/1.") or not fields[1].isdigit():
        raise HttpError(f"the reply is not HTTP/1.1: {status_line[:80]!r}")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in header_lines)}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = _chunked(reader)
    else:
        length = headers.get("content-length")
        body = _plain(reader, int(length) if length is not None and length.isdigit() else None)
    if fields[1] != "200":
        text = b"".join([chunk async for chunk in body]).decode("utf-8", "replace")
        raise HttpError(f"status {fields[1]}: {text[:500]}")
    return body


async def _chunked(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """RFC 9112, section 7.1."""
    while True:
        size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        if size == 0:
            return
        data = await reader.readexactly(size + 2)
        yield data[:-2]


async def _plain(reader: asyncio.StreamReader, length: int | None) -> AsyncIterator[bytes]:
    """A body of a known length, or one that ends with the connection."""
    left = length
    while left is None or left > 0:
        data = await reader.read(1 << 16 if left is None else min(left, 1 << 16))
        if not data:
            if left:
                raise asyncio.IncompleteReadError(b"", left)
            return
        if left is not None:
            left -= len(data)
        yield data
