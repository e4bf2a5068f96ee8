"""`Life`: what a process that listens goes through: loading, serving, draining, its end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import uvicorn

from octavo.async_llm import AsyncLLM
from octavo.config import ServerOptions
from octavo.engine.info import EngineInfo
from octavo.errors import OctavoError, OverloadedError
from octavo.garbage import settle
from octavo.server.acceptor import Acceptor
from octavo.server.app import App, build_app
from octavo.server.auth import KeyRing
from octavo.server.chunk_writer import Outbox
from octavo.server.connection import Connection
from octavo.server.limits import ConnectionLimits
from octavo.server.tracing import RequestTracer

logger = logging.getLogger("octavo.server")

_DEAD_GRACE_SECONDS = 2.0  # after the engine's end: probes see it, clients get their errors
_LAST_WRITES_SECONDS = 2.0
_POLL_SECONDS = 0.05


class HttpServer(uvicorn.Server):
    """Leaves signals to us, and takes connections as `Acceptor` does."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on the sockets."""
        config = self.config

        def connection() -> asyncio.Protocol:
            made: Any = config.http_protocol_class
            return made(config=config, server_state=self.server_state, app_state={})  # type: ignore[no-any-return]

        self.servers: Any = [Acceptor(listener, connection) for listener in sockets or ()]
        self.started = True


def uvicorn_config(app: App) -> uvicorn.Config:
    """Only what is used: no access log, no lifespan, no websockets, no headers that tell of us."""
    connection: Any = functools.partial(Connection, limits=ConnectionLimits.of(app.options), outbox=Outbox())
    return uvicorn.Config(
        app,
        http=connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        log_level="error",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(_LAST_WRITES_SECONDS),
    )


class Life:
    """A process that listens, from its beginning to its end.

    Args:
        make: what answers requests, not loaded yet.
        listener: where connections come in.

    Attributes:
        on_ready: called once requests can be answered.
        gather: as of `App`.
        app: once `run` was called.
    """

    app: App

    def __init__(self, make: Callable[[], AsyncLLM], options: ServerOptions, keys: KeyRing, listener: socket.socket):
        self._make = make
        self._options = options
        self._keys = keys
        self._listener = listener
        self.on_ready: Callable[[EngineInfo], None] | None = None
        self.tracer: RequestTracer | None = None
        self.gather: Callable[[str], Awaitable[str]] | None = None
        self._signals = 0
        self._signalled = asyncio.Event()

    async def run(self) -> int:
        """Load, serve, drain, close; 0 after an orderly end. Errors as of `octavo.server.serve.serve`."""
        self._llm = self._make()
        self.app = app = build_app(self._llm, self._options, self._keys)
        app.tracer = self.tracer
        app.gather_metrics = self.gather
        server = HttpServer(uvicorn_config(app))
        serving = asyncio.create_task(server.serve(sockets=[self._listener]))
        try:
            failure = await self._life(app, serving)
        finally:
            server.should_exit = True
            await self._llm.close()
            await asyncio.gather(serving, return_exceptions=True)
        if failure is not None:
            raise failure
        return 0

    def metrics_page(self) -> str:
        """This process's own."""
        return self.app.metrics_text()

    def signal(self) -> None:
        """End in order; told a second time, at once."""
        self._signals += 1
        self._signalled.set()

    async def _life(self, app: App, serving: asyncio.Task[None]) -> OctavoError | None:
        """Until the end: None if it was asked for, else what went wrong."""
        signalled = asyncio.create_task(self._signalled.wait())
        loading = asyncio.create_task(self._llm.load())
        try:
            await asyncio.wait([loading, signalled, serving], return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():
                return None
            info = loading.result()
            app.prepare()
            settle()
            if self.on_ready is not None:
                self.on_ready(info)
            while not (signalled.done() or serving.done() or self._llm.state == "dead"):
                await asyncio.wait([signalled, serving], timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            if self._llm.state == "dead":
                await asyncio.wait([signalled], timeout=_DEAD_GRACE_SECONDS)
                return self._llm.error
            if serving.done():
                serving.result()  # raises what ended it
            await self._drain(app)
            return None
        except OctavoError as error:
            return error
        finally:
            for task in (signalled, loading):
                task.cancel()
            await asyncio.gather(signalled, loading, return_exceptions=True)

    async def _drain(self, app: App) -> None:
        """Let open requests finish, for a while; a second signal cuts it short."""
        app.draining = True
        first, now = self._signals, asyncio.get_running_loop().time
        refuse_at = now() + self._options.drain_delay
        while now() < refuse_at and self._signals == first:
            await asyncio.sleep(_POLL_SECONDS)
        app.refusing = True
        end = now() + self._options.drain_timeout
        while (self._llm.num_open or app.num_exchanges) and now() < end and self._signals == first:
            await asyncio.sleep(_POLL_SECONDS)
        if self._llm.num_open:
            logger.warning("%d requests did not finish in time and end with an error", self._llm.num_open)
            self._llm.fail_open(OverloadedError("The server is shutting down.", fix="Send the request again."))
            await asyncio.sleep(_POLL_SECONDS)  # their last events are written
