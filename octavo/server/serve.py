"""`serve`: one process that listens, one that computes, and an orderly end for both."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import signal
import socket
from collections.abc import Callable, Generator
from typing import Any

import uvicorn

from octavo.async_llm import AsyncLLM
from octavo.config import EngineConfig, ServerOptions
from octavo.engine.client import ClientFactory, ProcessClient
from octavo.engine.info import EngineInfo
from octavo.engine.phases import Progress
from octavo.engine.restart import RestartingClient, RestartPolicy
from octavo.errors import ConfigError, OctavoError, OverloadedError
from octavo.logs import logging_to_stderr
from octavo.server.acceptor import Acceptor
from octavo.server.app import App, build_app
from octavo.server.auth import KeyRing, is_loopback
from octavo.server.chat_parts import Formats
from octavo.server.connection import Connection
from octavo.server.limits import ConnectionLimits, raise_descriptor_limit
from octavo.server.tracing import RequestTracer

logger = logging.getLogger("octavo.server")

OnReady = Callable[[EngineInfo, str], None]
"""Called with what was loaded and the server's root URL."""

_BACKLOG = 2048
_DEAD_GRACE_SECONDS = 2.0  # after the engine's end: probes see it, clients get their errors
_LAST_WRITES_SECONDS = 2.0
_POLL_SECONDS = 0.05


def serve(
    config: EngineConfig,
    options: ServerOptions,
    on_ready: OnReady | None = None,
    *,
    progress: Progress | None = None,
    client: ClientFactory = ProcessClient,
) -> int:
    """Serve a model over HTTP until SIGTERM, SIGINT or the engine's end; returns 0 after an orderly one.

    The port is open from the beginning: while the model is loading, /ready says so. After the first signal /ready
    answers 503; `options.drain_delay` seconds later new requests are refused, and open ones have
    `options.drain_timeout` seconds. A second signal ends everything at once. SIGHUP reads the file of keys again.

    Raises:
        ConfigError: the address needs a key, or cannot be listened on; a flag names an unknown format; traces are
            wanted and OpenTelemetry is not installed.
        EngineDeadError: the engine ended while it served.
        OctavoError: the model cannot be loaded.
    """
    keys = KeyRing.of(options)
    check_exposure(options, keys)
    Formats.check(options)
    connections = raise_descriptor_limit(options.max_connections)
    options = dataclasses.replace(options, api_key=(), max_connections=connections)  # of keys, only hashes stay
    endpoint = options.otlp_traces_endpoint
    tracer = RequestTracer.to_endpoint(endpoint) if endpoint else None
    listener = listen(options.host, options.port)
    with contextlib.closing(listener), contextlib.closing(tracer) if tracer else contextlib.nullcontext():
        server = _Server(config, options, keys, listener, on_ready, progress, client)
        server.tracer = tracer
        logs = logging_to_stderr(options.log_format, options.log_level)
        with logs, asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(server.run())


def make_llm(
    config: EngineConfig, options: ServerOptions, progress: Progress | None, client: ClientFactory = ProcessClient
) -> AsyncLLM:
    """What answers requests, not loaded yet; its engine is started again when it dies or hangs."""
    policy = RestartPolicy(options.max_engine_restarts, step_timeout=options.step_timeout)
    llm = AsyncLLM.of_config(
        config,
        client=lambda config: RestartingClient(lambda: client(config), policy),
        progress=progress,
        max_logprobs=options.max_logprobs,
        default_max_tokens=options.default_max_tokens,
    )
    if options.step_timeout:
        llm.hung_seconds = options.step_timeout / 4
    return llm


def check_exposure(options: ServerOptions, keys: KeyRing) -> None:
    """Refuse to serve a network without a key. Raises ConfigError."""
    if not keys and not options.allow_unauthenticated and not is_loopback(options.host):
        raise ConfigError(
            f"--host {options.host} is reachable from other machines, and no key is set.",
            fix="Set OCTAVO_API_KEY, --api-key-file or --api-key, listen on 127.0.0.1, or say --allow-unauthenticated.",
            param="host",
        )


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        ConfigError: the address is in use, or is none of this machine's.
    """
    host = host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        in_use = isinstance(error, OSError) and error.errno is not None and "in use" in str(error)
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}.",
            fix="Stop what listens there, or choose another --port (0 takes a free one)."
            if in_use
            else "Check --host and --port.",
            param="port" if in_use else "host",
        ) from error
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket, host: str) -> str:
    """The server's root as clients on this machine write it."""
    port = listener.getsockname()[1]
    host = host.strip("[]")
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Uvicorn(uvicorn.Server):
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
    connection: Any = functools.partial(Connection, limits=ConnectionLimits.of(app.options))
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
        backlog=_BACKLOG,
    )


class _Server:
    def __init__(
        self,
        config: EngineConfig,
        options: ServerOptions,
        keys: KeyRing,
        listener: socket.socket,
        on_ready: OnReady | None,
        progress: Progress | None,
        client: ClientFactory,
    ):
        self._options = options
        self._keys = keys
        self._listener = listener
        self._on_ready = on_ready
        self._config = config
        self._progress = progress
        self._client = client
        self.tracer: RequestTracer | None = None
        self._signals = 0
        self._signalled = asyncio.Event()

    async def run(self) -> int:
        """Load, serve, drain, close."""
        self._llm = make_llm(self._config, self._options, self._progress, self._client)
        app = build_app(self._llm, self._options, self._keys)
        app.tracer = self.tracer
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._keys.reload)
        server = _Uvicorn(uvicorn_config(app))
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

    def _on_signal(self) -> None:
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
            if self._on_ready is not None:
                self._on_ready(info, url_of(self._listener, self._options.host))
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


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Any = uvloop.new_event_loop
    return factory  # type: ignore[no-any-return]
