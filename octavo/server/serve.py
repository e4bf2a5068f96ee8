"""`serve`: one process that listens, one that computes, and an orderly end for both."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import signal
import socket
from collections.abc import Callable

from octavo.async_llm import AsyncLLM
from octavo.config import EngineConfig, ServerOptions
from octavo.engine.client import ClientFactory, ProcessClient
from octavo.engine.info import EngineInfo
from octavo.engine.phases import Progress
from octavo.engine.restart import RestartingClient, RestartPolicy
from octavo.errors import ConfigError
from octavo.frontend.sampling_defaults import sampling_defaults
from octavo.logs import logging_to_stderr
from octavo.server.auth import KeyRing, is_loopback
from octavo.server.chat_parts import Formats
from octavo.server.fronts import FrontKeeper
from octavo.server.life import Life
from octavo.server.limits import raise_descriptor_limit
from octavo.server.loop import loop_factory
from octavo.server.tracing import RequestTracer

logger = logging.getLogger("octavo.server")

OnReady = Callable[[EngineInfo, str], None]
"""Called with what was loaded and the server's root URL."""

_BACKLOG = 2048


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
        ConfigError: the address needs a key, or cannot be listened on; a flag names an unknown format, or a
            generation config that cannot be; traces are wanted and OpenTelemetry is not installed.
        EngineDeadError: the engine ended while it served.
        OctavoError: the model cannot be loaded.
    """
    keys = KeyRing.of(options)
    check_exposure(options, keys)
    Formats.check(options)
    sampling_defaults(options.generation_config, config)
    connections = raise_descriptor_limit(options.max_connections)
    options = dataclasses.replace(options, api_key=(), max_connections=connections)  # of keys, only hashes stay
    endpoint = options.otlp_traces_endpoint
    tracer = RequestTracer.to_endpoint(endpoint) if endpoint else None  # each front has its own; here it is checked
    listener = listen(options.host, options.port)
    with contextlib.closing(listener), contextlib.closing(tracer) if tracer else contextlib.nullcontext():
        logs = logging_to_stderr(options.log_format, options.log_level)
        if options.api_server_count > 1:
            with logs, asyncio.Runner(loop_factory=loop_factory()) as runner:
                return runner.run(_keep_fronts(config, options, keys, listener, on_ready, progress, client))
        life = Life(lambda: make_llm(config, options, progress, client), options, keys, listener)
        if on_ready is not None:
            life.on_ready = lambda info: on_ready(info, url_of(listener, options.host))
        life.tracer = tracer
        with logs, asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_with_signals(life, keys))


async def _keep_fronts(
    config: EngineConfig,
    options: ServerOptions,
    keys: KeyRing,
    listener: socket.socket,
    on_ready: OnReady | None,
    progress: Progress | None,
    client: ClientFactory,
) -> int:
    url = url_of(listener, options.host)

    def ready(info: EngineInfo) -> None:
        if on_ready is not None:
            on_ready(info, url)

    keeper = FrontKeeper(config, options, keys, listener, client=client, progress=progress, on_ready=ready)
    return await keeper.run()


async def _with_signals(life: Life, keys: KeyRing) -> int:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, life.signal)
    loop.add_signal_handler(signal.SIGHUP, keys.reload)
    return await life.run()


def make_llm(
    config: EngineConfig, options: ServerOptions, progress: Progress | None, client: ClientFactory = ProcessClient
) -> AsyncLLM:
    """What answers requests, not loaded yet; its engine is started again when it dies or hangs."""
    policy = RestartPolicy(options.max_engine_restarts, step_timeout=options.step_timeout)
    return prepare_llm(config, options, lambda config: RestartingClient(lambda: client(config), policy), progress)


def prepare_llm(
    config: EngineConfig,
    options: ServerOptions,
    client: ClientFactory,
    progress: Progress | None = None,
    *,
    first_handle: int = 1,
) -> AsyncLLM:
    """The same, with any way to an engine; `first_handle` is as of `AsyncLLM.of_config`."""
    llm = AsyncLLM.of_config(
        config,
        client=client,
        progress=progress,
        max_logprobs=options.max_logprobs,
        default_max_tokens=options.default_max_tokens,
        first_handle=first_handle,
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
