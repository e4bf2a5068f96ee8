"""`AttachedClient`: an engine that another process keeps, asked over a channel of one's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from octavo.engine import messages
from octavo.engine.channel import Channel
from octavo.engine.client import ChannelClient, EngineListener
from octavo.engine.info import EngineInfo
from octavo.engine.messages import Abort, AddRequest
from octavo.engine.phases import Progress
from octavo.errors import EngineDeadError, OctavoError
from octavo.request import EngineRequest


class AttachedClient(ChannelClient):
    """An `EngineClient` for one life of the engine. Who keeps the engine says when it died.

    Args:
        ask: told of an endpoint that the engine shall be attached to as soon as there is one; it is called again if the
            engine dies before it has answered, and the newest endpoint is the one that counts.
    """

    def __init__(self, ask: Callable[[str], None]):
        super().__init__()
        self._ask = ask

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
        self._channel = Channel(self._pass_on)
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
        self._wait_no_longer()
        if self._channel is not None:
            self._channel.close()
