"""From what the engine brings to a reply, whole or as a stream of events, for every API that generates."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable
from typing import Any

from octavo.errors import OctavoError, RequestFailedError
from octavo.frontend.sample import Sample, Update
from octavo.frontend.update_stream import UpdateStream
from octavo.server.chunk_writer import ChunkWriter
from octavo.server.http import ClientGoneError, Exchange, cancel, shown
from octavo.server.keep_alive import KeepAlive
from octavo.server.render import Reply
from octavo.server.timing import wants_timing

_EVENT_STREAM = b"text/event-stream; charset=utf-8"
_STREAM_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))  # no proxy shall hold chunks back


async def answer(exchange: Exchange, stream: UpdateStream, reply: Reply, streaming: bool) -> None:
    """Reply with what a stream brings. A client that hangs up, or an error, aborts what is open.

    Raises:
        OctavoError: nothing has been sent yet and the requests are lost.
        ClientGoneError: there is nobody to answer.
    """
    reply.timing = reply.timing or wants_timing(exchange.headers)
    if not streaming:
        await answer_whole(exchange, stream, reply.whole)
        return
    exchange.opened, exchange.streaming = stream.opened, True
    watcher = asyncio.create_task(_watch(exchange, stream))
    try:
        await _stream(exchange, stream, reply)
    finally:
        stream.close()
        await cancel(watcher)


async def answer_whole(
    exchange: Exchange,
    stream: UpdateStream,
    reply: Callable[[], dict[str, Any]],
    take: Callable[[list[Update]], object] | None = None,
) -> None:
    """Wait for all of a stream, then send what `reply` makes; errors as of `answer`, also for a sample that failed.

    Args:
        take: is given the updates as they come, if somebody wants them.
    """
    exchange.opened = stream.opened
    watcher = asyncio.create_task(_watch(exchange, stream))
    try:
        if take is None:
            await stream.finish()
        else:
            while updates := await stream.next():
                take(updates)
        if exchange.gone:
            raise ClientGoneError
        for request in stream.opened:
            _check(request.samples)
        await exchange.json(200, reply())
    finally:
        stream.close()
        await cancel(watcher)


async def _watch(exchange: Exchange, stream: UpdateStream) -> None:
    await exchange.wait_gone()
    stream.close()


async def _stream(exchange: Exchange, stream: UpdateStream, reply: Reply) -> None:
    await exchange.start(200, _EVENT_STREAM, _STREAM_HEADERS)
    try:
        await exchange.send_part(reply.opening())
        with KeepAlive(exchange.send_part, exchange.keep_alive) as alive:
            await _events(exchange, stream, reply, alive)
        last = reply.closing()
    except OctavoError as error:
        last = reply.failure(shown(error))
    if exchange.gone:
        raise ClientGoneError
    await exchange.send_last(last)


async def _events(exchange: Exchange, stream: UpdateStream, reply: Reply, alive: KeepAlive) -> None:
    """What a stream brings, until it ends.

    Raises:
        RequestFailedError: a sample failed in the engine. What came before it has been sent.
    """
    short = None
    if exchange.writer is not None:
        short = stream.taker = _ShortWay(exchange.writer, reply, alive)
    while updates := await stream.next():
        if short is not None and short.error is not None:
            raise short.error
        sound = list(itertools.takewhile(_is_sound, updates))
        body = reply.chunks(sound)
        if body:
            alive.quiet = False
            await exchange.send_part(body)
        _check(updates[len(sound) :])


class _ShortWay:
    """Writes an update's events as soon as the engine has brought it, without a turn of the stream's task, where it is
    not a sample's last and the connection can take more."""

    __slots__ = ("_alive", "_reply", "_writer", "error")

    def __init__(self, writer: ChunkWriter, reply: Reply, alive: KeepAlive):
        self._writer = writer
        self._reply = reply
        self._alive = alive
        self.error: Exception | None = None

    def __call__(self, update: Update) -> bool:
        """Whether it was written; it must not raise, since other requests are told of the same step after it."""
        if update.finish_reason is not None or not self._writer.ready:
            return False
        try:
            body = self._reply.chunks((update,))
        except Exception as error:
            self.error = error
            return False
        if body:
            self._writer.write(body)
            self._alive.quiet = False
        return True


def _is_sound(ended: Update | Sample) -> bool:
    return ended.finish_reason != "error"


def _check(ended: Iterable[Update | Sample]) -> None:
    """Raises RequestFailedError: one of them failed in the engine."""
    for each in ended:
        if not _is_sound(each):
            raise RequestFailedError(each.error or "The request failed.", fix="Send it again.")
