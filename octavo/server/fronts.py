"""`FrontKeeper`: several processes that serve one model over one port, and the one engine that they ask.

The keeper starts everything, notices every death, and hands no request on: fronts take connections from a socket that
they all inherit, and each has a channel of its own to the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from octavo.child_python import isolated_python
from octavo.config import EngineConfig, ServerOptions
from octavo.engine.client import ClientFactory
from octavo.engine.info import EngineInfo
from octavo.engine.messages import Failure
from octavo.engine.phases import Progress
from octavo.engine.restart import RestartingClient, RestartPolicy
from octavo.errors import OctavoError
from octavo.request import EngineStats, StepOutputs
from octavo.server import front_messages as talk
from octavo.server.auth import KeyRing
from octavo.server.metrics_merge import counted

logger = logging.getLogger("octavo.server")

MAX_RESTARTS = 5  # of fronts, within
WINDOW_SECONDS = 600.0
_PAGE_SECONDS = 1.0
_LOOK_SECONDS = 5.0  # between two looks at the fronts
_DEAD_GRACE_SECONDS = 2.0
_END_SECONDS = 8.0  # that a front may take beyond the drain


@dataclasses.dataclass(eq=False)
class Front:
    """A front process as the keeper sees it.

    Attributes:
        wants: the endpoint that it waits for the engine at; "" if it has it, or has not asked.
        page: of its metrics, when it last told it.
        gone: it has ended.
        silent: seconds for which it has not answered.
    """

    number: int
    process: subprocess.Popen[bytes]
    writer: asyncio.StreamWriter
    wants: str = ""
    serving: bool = False
    page: str = ""
    gone: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    asked: dict[int, asyncio.Event] = dataclasses.field(default_factory=dict)
    silent: float = 0.0
    task: asyncio.Task[None] | None = None


class FrontKeeper:
    """Keeps `options.api_server_count` fronts and an engine.

    Args:
        keys: that open the server; `reload_keys` reads their file again.
        listener: where connections come in; the keeper takes none.
        on_ready: called once every front serves.
    """

    def __init__(
        self,
        config: EngineConfig,
        options: ServerOptions,
        keys: KeyRing,
        listener: socket.socket,
        *,
        client: ClientFactory,
        progress: Progress | None = None,
        on_ready: Callable[[EngineInfo], None] | None = None,
    ):
        self._config = config
        self._options = options
        self._keys = keys
        self._listener = listener
        self._progress = progress
        self._on_ready = on_ready
        policy = RestartPolicy(options.max_engine_restarts, step_timeout=options.step_timeout)
        self._engine = RestartingClient(lambda: client(config), policy)
        self._numbers = itertools.count(1)
        self._pages = itertools.count(1)
        self._fronts: dict[int, Front] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._deaths: list[float] = []
        self._retired = ""
        self._up = False
        self._info: EngineInfo | None = None
        self._signals = 0
        self._ending = False
        self._changed = asyncio.Event()
        self._error: OctavoError | None = None

    async def run(self) -> int:
        """Start everything, keep it, end it in order; 0 after an orderly end. Errors as of `serve`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._reload_keys)
        starting = asyncio.create_task(self._start_engine())
        watching = asyncio.create_task(self._watch_fronts(self._options.step_timeout / 4))
        try:
            for _ in range(self._options.api_server_count):
                await self._start_front()
            await self._until(lambda: self._error is not None or self._signals > 0)
            if self._error is not None:
                if self._info is not None:
                    await self._until(lambda: self._signals > 0, _DEAD_GRACE_SECONDS)
                raise self._error
            await self._drain()
            return 0
        finally:
            self._ending = True
            for task in (starting, watching):
                task.cancel()
            await self._end_fronts()
            await self._engine.close()
            await asyncio.gather(starting, watching, *self._tasks, return_exceptions=True)

    async def _start_engine(self) -> None:
        try:
            self._info = await self._engine.start(self, self._on_progress)
        except OctavoError as error:
            self._fail(error)
            return
        self._engine_is_up()

    async def _until(self, condition: Callable[[], bool], seconds: float | None = None) -> None:
        """Wait until a condition holds, which changes only where `_changed` is set."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()

    def _fail(self, error: OctavoError) -> None:
        """The server cannot go on."""
        if self._error is None:
            self._error = error
            self._tell(talk.EngineLost(Failure.of(error)))
            self._changed.set()

    def _tell(self, message: talk.ToFront) -> None:
        for front in self._fronts.values():
            talk.write(front.writer, message)

    # -- the engine ----------------------------------------------------------------------------------------------

    def _on_progress(self, phase: str, fraction: float) -> None:
        if self._progress is not None:
            self._progress(phase, fraction)
        self._tell(talk.Loading(phase, fraction))

    def _engine_is_up(self) -> None:
        self._up = True
        for front in self._fronts.values():
            self._attach(front)

    def _attach(self, front: Front) -> None:
        if self._up and front.wants:
            self._engine.attach(front.number, front.wants)
            front.wants = ""

    def on_outputs(self, step: StepOutputs) -> None:
        """No request is the keeper's."""

    def on_stats(self, stats: EngineStats) -> None:
        """Each front hears them itself."""

    def on_request_failed(self, handle: int, error: OctavoError) -> None:
        """No request is the keeper's."""

    def on_dead(self, error: OctavoError) -> None:
        """The engine died once too often."""
        self._up = False
        self._fail(error)

    def on_restarting(self, error: OctavoError, kept: Collection[int]) -> None:
        """The engine died: fronts keep what it had not begun, and ask for the next one."""
        self._up = False
        for front in self._fronts.values():
            front.wants = ""
        self._tell(talk.EngineDied(Failure.of(error)))

    def on_restarted(self) -> None:
        """There is an engine again."""
        self._engine_is_up()

    # -- fronts --------------------------------------------------------------------------------------------------

    async def _start_front(self) -> None:
        number = next(self._numbers)
        ours, theirs = socket.socketpair()
        with theirs:
            descriptors = (theirs.fileno(), self._listener.fileno())
            command = [*isolated_python(), "-m", "octavo.server.front", *map(str, descriptors)]
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command, stdin=subprocess.DEVNULL, pass_fds=descriptors
            )
        ours.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=ours)
        front = self._fronts[number] = Front(number, process, writer)
        config, options = shares(self._config, self._options)
        in_main_thread = threading.current_thread() is threading.main_thread()
        launch = talk.Launch(number, config, options, self._keys.digests, os.getpid(), in_main_thread)
        talk.write(writer, launch)
        if self._error is not None:
            talk.write(writer, talk.EngineLost(Failure.of(self._error)))
        front.task = asyncio.create_task(self._listen(front, reader))

    async def _listen(self, front: Front, reader: asyncio.StreamReader) -> None:
        """Until the front ends, which the end of its socket tells."""
        failure: Failure | None = None
        while data := await talk.read(reader):
            message = talk.decode_from_front(data)
            if isinstance(message, talk.Failed):
                failure = message.failure
            else:
                self._take(front, message)
        front.process.kill()  # without its socket it is of no use
        status = await asyncio.to_thread(front.process.wait)
        front.writer.close()
        self._fronts.pop(front.number, None)
        self._engine.detach(front.number)
        self._retired = counted(front.page, self._retired)
        front.gone.set()
        self._changed.set()
        if not self._ending and not self._signals and self._error is None:
            self._replace(status, failure)

    def _take(self, front: Front, message: talk.FromFront) -> None:
        if isinstance(message, talk.WantEngine):
            front.wants = message.endpoint
            self._attach(front)
        elif isinstance(message, talk.Serving):
            self._on_serving(front)
        elif isinstance(message, talk.Page):
            front.page = message.text
            answered = front.asked.get(message.number)
            if answered is not None:
                answered.set()
        elif isinstance(message, talk.WantPages):
            front.page = message.own
            self._in_background(self._collect(front, message.number))

    def _on_serving(self, front: Front) -> None:
        front.serving = True
        on_ready, info = self._on_ready, self._info
        serving = sum(each.serving for each in self._fronts.values())
        if on_ready is not None and info is not None and serving == self._options.api_server_count:
            self._on_ready = None
            on_ready(info)

    def _replace(self, status: int, failure: Failure | None) -> None:
        """Start another front, unless that was done often enough, or it said itself why it cannot be."""
        if failure is not None:
            self._fail(failure.error())
            return
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        now = time.monotonic()
        self._deaths = [death for death in self._deaths if now - death < WINDOW_SECONDS] + [now]
        if len(self._deaths) > MAX_RESTARTS:
            message = f"A front process ended unexpectedly ({how}), the {len(self._deaths)}th within ten minutes."
            self._fail(OctavoError(message, fix="The log says more; start the server again.", code="front_dead"))
            return
        logger.error("A front process ended (%s). Another one is started (%d of %d).", how, len(self._deaths),
                     MAX_RESTARTS)  # fmt: skip
        self._in_background(self._start_front())

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _reload_keys(self) -> None:
        if self._keys.reload():
            self._tell(talk.Keys(self._keys.digests))

    async def _collect(self, asking: Front, number: int) -> None:
        """Give a front the others' pages: those of now, or of one that does not answer its last."""
        others = [front for front in self._fronts.values() if front is not asking]
        await asyncio.gather(*map(self._ask_page, others))
        pages = [front.page for front in others if front.page and not front.gone.is_set()]
        talk.write(asking.writer, talk.Pages(number, pages, self._retired))

    async def _watch_fronts(self, limit: float) -> None:
        """End a front that does not answer for `limit` seconds (0: wait for ever); it is then replaced like any that
        dies. Its page is as old as the last look at most when it dies, and so are the counts that go on without it."""
        pause = min(_LOOK_SECONDS, limit / 2) if limit else _LOOK_SECONDS
        while True:
            await asyncio.sleep(pause)
            serving = [front for front in self._fronts.values() if front.serving]
            for front, answered in zip(serving, await asyncio.gather(*map(self._ask_page, serving)), strict=True):
                front.silent = 0.0 if answered else front.silent + pause + _PAGE_SECONDS
                if limit and front.silent >= limit and not front.gone.is_set():
                    logger.error("A front process has not answered for %g seconds and is ended.", front.silent)
                    front.process.kill()

    async def _ask_page(self, front: Front) -> bool:
        """Whether it has told its page, within a second."""
        number = next(self._pages)
        answered = front.asked[number] = asyncio.Event()
        talk.write(front.writer, talk.TellPage(number))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(answered.wait(), _PAGE_SECONDS)
        del front.asked[number]
        return answered.is_set()

    # -- the end -------------------------------------------------------------------------------------------------

    def _on_signal(self) -> None:
        self._signals += 1
        self._changed.set()
        self._tell(talk.Signalled())

    async def _drain(self) -> None:
        """The fronts drain; this only waits."""
        self._listener.close()  # theirs are open as long as they want it
        seconds = self._options.drain_delay + self._options.drain_timeout + _END_SECONDS
        await self._until(lambda: not self._fronts, seconds)

    async def _end_fronts(self) -> None:
        for front in list(self._fronts.values()):
            front.process.kill()
        await asyncio.gather(*(front.task for front in list(self._fronts.values()) if front.task is not None))


def shares(config: EngineConfig, options: ServerOptions) -> tuple[EngineConfig, ServerOptions]:
    """What one of `options.api_server_count` fronts may take: its part of what all may, rounded up."""
    count = options.api_server_count

    def part(whole: int) -> int:
        return -(-whole // count)

    scheduler = dataclasses.replace(config.scheduler, max_num_queued_reqs=part(config.scheduler.max_num_queued_reqs))
    each = options.max_queued_reqs_per_key
    options = dataclasses.replace(
        options,
        max_connections=part(options.max_connections),
        max_body_bytes_in_all=part(options.max_body_bytes_in_all),
        max_queued_reqs_per_key=None if each is None else part(each),
    )
    return dataclasses.replace(config, scheduler=scheduler), options
