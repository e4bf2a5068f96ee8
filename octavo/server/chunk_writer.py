"""`ChunkWriter`: parts of a reply straight to its connection."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class ChunkWriter:
    """Does for one reply what ASGI's `send` does with a part that is not the last, at once and without a coroutine."""

    __slots__ = ("_cycle", "_flow", "_transport")

    def __init__(self, cycle: RequestResponseCycle, flow: FlowControl, transport: asyncio.Transport):
        self._cycle = cycle
        self._flow = flow
        self._transport = transport

    @property
    def ready(self) -> bool:
        """Whether the reply has begun, goes on, and its reader keeps up."""
        cycle = self._cycle
        return bool(cycle.chunked_encoding) and not (
            self._flow.write_paused or cycle.disconnected or cycle.response_complete
        )

    def write(self, part: bytes) -> None:
        """Write a part that is not empty, where `ready`."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(part), part))
