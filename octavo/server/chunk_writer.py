"""`ChunkWriter`: parts of a reply straight to its connection, together where several come at once."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class Outbox:
    """The writers of one event loop that have something to write: all are flushed in its next turn.

    A server that keeps up writes each token by itself. One that does not takes several steps of the engine in a turn,
    and writes each client's tokens of all of them at once, which is what takes most time: so it falls behind no
    further.
    """

    __slots__ = ("_writers",)

    def __init__(self) -> None:
        self._writers: list[ChunkWriter] = []

    def add(self, writer: ChunkWriter) -> None:
        """Flush a writer soon."""
        if not self._writers:
            asyncio.get_running_loop().call_soon(self._flush)
        self._writers.append(writer)

    def _flush(self) -> None:
        writers, self._writers = self._writers, []
        for writer in writers:
            writer.flush()


class ChunkWriter:
    """Does for one reply what ASGI's `send` does with parts that are not the last, without a coroutine for each."""

    __slots__ = ("_cycle", "_flow", "_outbox", "_parts", "_transport")

    def __init__(
        self,
        cycle: RequestResponseCycle,
        flow: FlowControl,
        transport: asyncio.Transport,
        outbox: Outbox,
    ):
        self._cycle = cycle
        self._flow = flow
        self._transport = transport
        self._outbox = outbox
        self._parts: list[bytes] = []

    @property
    def ready(self) -> bool:
        """Whether the reply has begun, goes on, and its reader keeps up."""
        cycle = self._cycle
        return bool(cycle.chunked_encoding) and not (
            self._flow.write_paused or cycle.disconnected or cycle.response_complete
        )

    def write(self, part: bytes) -> None:
        """Write a part that is not empty soon, where `ready`."""
        parts = self._parts
        if not parts:
            self._outbox.add(self)
        parts.append(part)

    def flush(self) -> None:
        """Write what waits. To be called before anything is sent another way."""
        parts, self._parts = self._parts, []
        if parts and not self._cycle.disconnected:
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            self._transport.write(b"%x\r\n%b\r\n" % (len(body), body))
