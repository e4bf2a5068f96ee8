"""`python -m octavo.server.front CONTROL LISTENER`: one of several processes that serve one model together.

It speaks HTTP, renders templates, tokenizes, and turns tokens into text; the engine is another process, which it asks
over a channel of its own. Both arguments are descriptors that `octavo.server.fronts` has left open: a socket to itself,
and the one that all fronts take connections from.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import sys
import traceback

from octavo.async_llm import AsyncLLM
from octavo.engine.attached import AttachedClient
from octavo.engine.info import EngineInfo
from octavo.engine.messages import Failure, first_handle
from octavo.engine.process import die_with, leave_signals_to_the_parent
from octavo.engine.restart import RestartingClient, RestartPolicy
from octavo.errors import OctavoError, OverloadedError
from octavo.logs import logging_to_stderr
from octavo.server import front_messages as talk
from octavo.server.auth import KeyRing
from octavo.server.life import Life
from octavo.server.limits import raise_descriptor_limit
from octavo.server.loop import loop_factory
from octavo.server.metrics_merge import merge
from octavo.server.serve import prepare_llm
from octavo.server.tracing import RequestTracer

EXIT_ORPHANED = 5
_NEVER = 1 << 30  # how often an engine may be started again is its keeper's to decide
_PAGES_SECONDS = 3.0


class Front:
    """What a front hears from its keeper, and what it says.

    Args:
        launch: the first message.
        listener: where connections come in.
    """

    def __init__(self, launch: talk.Launch, writer: asyncio.StreamWriter, listener: socket.socket):
        self._launch = launch
        self._writer = writer
        self._client = AttachedClient(self._want)
        self._llm: AsyncLLM | None = None
        self._collecting: dict[int, asyncio.Future[talk.Pages]] = {}
        self._numbers = itertools.count(1)
        self._keys = KeyRing.of_digests(launch.digests)
        self.life = Life(self._make_llm, launch.options, self._keys, listener)
        self.life.on_ready = self._on_ready
        self.life.gather = self._gather

    def _want(self, endpoint: str) -> None:
        talk.write(self._writer, talk.WantEngine(endpoint))

    def _make_llm(self) -> AsyncLLM:
        policy = RestartPolicy(_NEVER, first_pause=0.0, step_timeout=0.0, quiet=True)
        self._llm = prepare_llm(
            self._launch.config,
            self._launch.options,
            lambda config: RestartingClient(self._new_client, policy),
            first_handle=first_handle(self._launch.number),
        )
        return self._llm

    def _new_client(self) -> AttachedClient:
        self._client = AttachedClient(self._want)
        return self._client

    def _on_ready(self, info: EngineInfo) -> None:
        talk.write(self._writer, talk.Serving())

    async def _gather(self, own: str) -> str:
        """The page of all fronts. Raises OverloadedError: the keeper does not answer."""
        number = next(self._numbers)
        arrives = self._collecting[number] = asyncio.get_running_loop().create_future()
        talk.write(self._writer, talk.WantPages(number, own))
        try:
            pages = await asyncio.wait_for(arrives, _PAGES_SECONDS)
        except TimeoutError:
            raise OverloadedError("The other front processes do not answer.", fix="Try again.") from None
        finally:
            del self._collecting[number]
        return merge(own, pages.others, pages.retired)

    async def follow(self, reader: asyncio.StreamReader) -> None:
        """Do what the keeper says, and end with it."""
        while data := await talk.read(reader):
            self._take(talk.decode_to_front(data))
        os._exit(EXIT_ORPHANED)

    def _take(self, message: talk.ToFront) -> None:
        if isinstance(message, talk.Loading):
            self._client.on_progress(message.phase, message.fraction)
        elif isinstance(message, talk.EngineDied):
            self._client.died(message.failure.error())
        elif isinstance(message, talk.EngineLost):
            self._on_lost(message.failure.error())
        elif isinstance(message, talk.Keys):
            self._keys.replace(message.digests)
        elif isinstance(message, talk.Signalled):
            self.life.signal()
        elif isinstance(message, talk.TellPage):
            talk.write(self._writer, talk.Page(message.number, self.life.metrics_page()))
        elif isinstance(message, talk.Pages):
            waiting = self._collecting.get(message.number)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)

    def _on_lost(self, error: OctavoError) -> None:
        loading = self._llm is None or self._llm.state in ("new", "loading")
        if loading and self._client.starting:
            self._client.failed(error)
        elif self._llm is not None:
            self._llm.on_dead(error)


async def _main(control: socket.socket, listener: socket.socket) -> int:
    reader, writer = await asyncio.open_connection(sock=control)
    data = await talk.read(reader)
    launch = talk.decode_to_front(data) if data else None
    if not isinstance(launch, talk.Launch):
        return EXIT_ORPHANED
    if launch.bound_to_parent:
        die_with(launch.parent)
    options = launch.options
    raise_descriptor_limit(options.max_connections)
    tracer = RequestTracer.to_endpoint(options.otlp_traces_endpoint) if options.otlp_traces_endpoint else None
    traced = contextlib.closing(tracer) if tracer else contextlib.nullcontext()
    with traced, logging_to_stderr(options.log_format, options.log_level):
        front = Front(launch, writer, listener)
        front.life.tracer = tracer
        listening = asyncio.create_task(front.follow(reader))
        try:
            return await front.life.run()
        except OctavoError as error:
            talk.write(writer, talk.Failed(Failure.of(error)))
            return error.exit_code
        except Exception as error:
            traceback.print_exc()
            talk.write(writer, talk.Failed(Failure.of(error)))
            return 1
        finally:
            listening.cancel()
            with contextlib.suppress(OSError):
                await writer.drain()
            writer.close()


def main() -> int:
    """Serve until the keeper says that it is enough; returns the exit status."""
    leave_signals_to_the_parent()
    control, listener = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    with control, listener, asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_main(control, listener))


if __name__ == "__main__":
    sys.exit(main())
