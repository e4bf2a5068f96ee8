"""`UpdateStream`: what comes of requests, for one reader."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from octavo.errors import DeadlineError, OctavoError, RequestFailedError
from octavo.frontend.sample import OpenRequest, Update
from octavo.request import EngineRequest


class Owner(Protocol):
    """Whoever submitted the requests: it can abort them."""

    loop: asyncio.AbstractEventLoop

    def forget(self, stream: UpdateStream) -> None:
        """Abort what is open of a stream."""


class UpdateStream:
    """Updates of one or several requests that end together, for one reader.

    Attributes:
        requests: what was submitted, in order; `handles` of theirs that are open.
        opened: what came of them so far, in the same order.
        pending: updates that were not read. More than `max_pending` end the requests with an error.
        error: why the requests were lost, if they were.
        taker: is offered each update while the reader waits for one, and says whether it has seen to it; those that it
            has are not read.
    """

    __slots__ = (
        "_owner", "_quiet", "_timer", "_waiter", "error", "handles", "max_pending", "opened", "pending", "requests",
        "taker",
    )  # fmt: skip

    def __init__(self, owner: Owner, requests: Sequence[EngineRequest], max_pending: int):
        self._owner = owner
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._quiet = False
        self.max_pending = max_pending
        self.requests = requests
        self.opened: list[OpenRequest] = []
        self.handles = {request.handle for request in requests}
        self.pending: list[Update] = []
        self.error: OctavoError | None = None
        self.taker: Callable[[Update], bool] | None = None

    async def next(self) -> list[Update]:
        """All updates since the last call, waiting for the first; empty when all requests have ended.

        Raises:
            OctavoError: the requests were lost: the engine refused or dropped them, or died.
        """
        while not self.pending:
            if self.error is not None:
                raise self.error.with_traceback(None)
            if not self.handles:
                return []
            self._waiter = self._owner.loop.create_future()
            await self._waiter
        taken, self.pending = self.pending, []
        return taken

    async def finish(self) -> None:
        """Wait until all requests have ended; what came of them is in `opened`. Raises as `next`."""
        self._quiet = True
        while self.handles:
            self._waiter = self._owner.loop.create_future()
            await self._waiter
        if self.error is not None:
            raise self.error.with_traceback(None)

    def push(self, update: Update) -> None:
        """Add an update and wake the reader."""
        pending = self.pending
        if update.finished:
            self.handles.discard(update.handle)
        waiter = self._waiter
        if not self._quiet:
            if self.taker is not None and waiter is not None and not waiter.done() and self.taker(update):
                return
            pending.append(update)
        elif self.handles:
            return
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)
        elif len(pending) > self.max_pending:
            self.fail(RequestFailedError("The answer was not read as fast as it came.", fix="Read faster."))

    def wake(self) -> None:
        """Let the reader look again."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def fail(self, error: OctavoError) -> None:
        """End all of it with an error, which the reader gets after what is pending."""
        if self.error is None:
            self.error = error
        self._owner.forget(self)
        self.wake()

    def end_at(self, deadline: float) -> None:
        """Fail with a `DeadlineError` if it is still open at a time, `time.monotonic()`."""
        seconds = deadline - time.monotonic()
        error = DeadlineError("The request took longer than it may.", fix="Ask for less, or allow more time.")
        self._timer = self._owner.loop.call_later(max(0.0, seconds), self._expire, error)

    def _expire(self, error: OctavoError) -> None:
        if self.handles:
            self.fail(error)

    def close(self) -> None:
        """Abort what is still open. The reader, if one waits, gets no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._owner.forget(self)
        self.wake()
