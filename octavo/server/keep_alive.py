"""Comments in a stream of events while there is nothing to say, so that no proxy takes the silence for an end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

_COMMENT = b": keep-alive\n\n"


class KeepAlive:
    """Within the block, sends a comment after each `seconds` in which nothing else was sent; 0 sends none.

    Attributes:
        quiet: nothing was sent since the clock last looked. Whoever sends an event sets it to False.
    """

    __slots__ = ("_loop", "_seconds", "_send", "_task", "_timer", "quiet")

    def __init__(self, send: Callable[[bytes], Awaitable[None]], seconds: float):
        self.quiet = True
        self._send = send
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> KeepAlive:
        if self._seconds > 0:
            self._timer = self._loop.call_later(self._seconds, self._look)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _look(self) -> None:
        if self.quiet and (self._task is None or self._task.done()):
            self._task = self._loop.create_task(self._comment())
        self.quiet = True
        self._timer = self._loop.call_later(self._seconds, self._look)

    async def _comment(self) -> None:
        await self._send(_COMMENT)
