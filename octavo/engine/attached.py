"""`AttachedClient`: an engine that another process keeps, asked over a channel of one's own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from octavo.engine import messages
from octavo.engine.channel import Channel
from octavo.engine.client import EngineListener
from octavo.engine.info import EngineInfo
from octavo.engine.messages import Abort, AddRequest, Heartbeat, Outputs, Ready, RequestFailed
from octavo.engine.phases import Progress
from octavo.errors import EngineDeadError, OctavoError
from octavo.request import EngineRequest


class AttachedClient:
    """An `EngineClient` for one life of the engine. Who keeps the engine says when it died.

    Args:
        ask: told of an endpoint that the engine shall be attached to as soon as there is one; it is called again if the
            engine dies before it has answered, and the newest endpoint is the one that counts.
    """

    def __init__(self, ask: Callable[[str], None]):
        self._ask = ask
        self._channel: Channel | None = None
        self._listener: EngineListener | None = None
        self._progress: Progress | None = None
        self._ready: asyncio.Future[EngineInfo] | None = None
        self._error: OctavoError | None = None
        self._progress_time = time.monotonic()

    @property
    def progress_time(self) -> float:
        """`time.monotonic()` of the last sign that the engine gets on with its work."""
        return self._progress_time

    async def start(self, listener: EngineListener, progress: Progress | None = None) -> EngineInfo:
        """Wait until the engine answers. Raises what `failed` is told."""
        self._listener, self._progress = listener, progress
        if self._error is not None:
            raise self._error
        self._ready = asyncio.get_running_loop().create_future()
        self._open()
        try:
            return await self._ready
        except BaseException:
            await self.close()
            raise

    def _open(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = Channel(self._take)
        self._ask(self._channel.endpoint)

    @property
    def starting(self) -> bool:
        """The engine has not answered yet."""
        return self._ready is None or not self._ready.done()

    def add(self, request: EngineRequest) -> None:
        """Send a request. Raises EngineDeadError."""
        if not self._send(AddRequest(request)):
            raise EngineDeadError("The engine has ended.", fix="Try again in a few seconds.")

    def abort(self, handle: int, index: int | None = None) -> None:
        """End a request, or one sample of it."""
        self._send(Abort(handle, index))

    def _send(self, message: messages.ToEngine) -> bool:
        return self._error is None and self._channel is not None and self._channel.send(message)

    def _take(self, message: messages.FromEngine) -> None:
        listener = self._listener
        if listener is None:
            return
        if isinstance(message, Outputs):
            self._progress_time = time.monotonic()
            listener.on_outputs(message.step)
        elif isinstance(message, Heartbeat):
            self._progress_time = max(self._progress_time, message.progress_time)
            listener.on_stats(message.stats)
        elif isinstance(message, RequestFailed):
            listener.on_request_failed(message.handle, message.failure.error())
        elif isinstance(message, Ready) and self._ready is not None and not self._ready.done():
            self._progress_time = time.monotonic()
            self._ready.set_result(message.info)

    # -- what its keeper says ------------------------------------------------------------------------------------

    def on_progress(self, phase: str, fraction: float) -> None:
        """The engine is loading."""
        if self.starting and self._progress is not None:
            self._progress(phase, fraction)

    def died(self, error: OctavoError) -> None:
        """The engine died, and there will be another one, for which a client that has been ready is of no use."""
        if self.starting:
            if self._ready is not None:
                self._open()
            return
        if self._channel is not None:
            self._channel.receive()  # its last words
        self._fail(error)

    def failed(self, error: OctavoError) -> None:
        """There is no engine, and there will be none."""
        if not self.starting:
            self._fail(error)
            return
        self._error = error
        if self._ready is not None:
            self._ready.set_exception(error)

    def _fail(self, error: OctavoError) -> None:
        if self._error is None and self._listener is not None:
            self._error = error
            self._listener.on_dead(error)

    def kill(self) -> None:
        """The engine is another process's: nothing is done."""

    async def close(self) -> None:
        """Close the channel. May be called again, and before `start` has returned."""
        self._error = self._error or EngineDeadError("The engine was closed.")
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(EngineDeadError("The engine was closed while it started."))
            self._ready.exception()  # nobody may be waiting any more
        if self._channel is not None:
            self._channel.close()
