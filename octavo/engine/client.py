"""The engine as its front end sees it, and `ProcessClient`, for an engine in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from octavo.config import EngineConfig
from octavo.engine import messages
from octavo.engine.channel import Channel
from octavo.engine.child import MODEL_ENGINE, start_engine
from octavo.engine.info import EngineInfo
from octavo.engine.messages import (
    Abort,
    AddRequest,
    Attach,
    Detach,
    EngineFailed,
    Heartbeat,
    Launch,
    Outputs,
    Ready,
    RequestFailed,
    Shutdown,
    StartupFailed,
    StartupProgress,
)
from octavo.engine.phases import Progress
from octavo.errors import EngineDeadError, OctavoError
from octavo.request import EngineRequest, EngineStats, StepOutputs

_LAST_WORDS_SECONDS = 0.3  # after the process ended, its last messages may still be on their way
_CLOSE_SECONDS = 5.0


class EngineListener(Protocol):
    """Who is told what the engine says; called on the event loop, and must not block."""

    def on_outputs(self, step: StepOutputs) -> None: ...
    def on_stats(self, stats: EngineStats) -> None: ...
    def on_request_failed(self, handle: int, error: OctavoError) -> None: ...
    def on_dead(self, error: OctavoError) -> None:
        """Told once, if the engine ends without having been asked to."""

    def on_restarting(self, error: OctavoError, kept: Collection[int]) -> None:
        """The engine has died of `error`, and the next one is on its way (`octavo.engine.restart`). Requests of the
        handles in `kept` will be given to it; all others are lost. Until `on_restarted` none can be added."""

    def on_restarted(self) -> None:
        """The next engine is ready, and has what was kept."""


class EngineClient(Protocol):
    """An engine behind a border. All methods are called on the event loop."""

    async def start(self, listener: EngineListener, progress: Progress | None = None) -> EngineInfo:
        """Load the model. Raises what the engine's constructor raises, or EngineDeadError."""

    def add(self, request: EngineRequest) -> None:
        """Send a request. Raises EngineDeadError."""

    def abort(self, handle: int, index: int | None = None) -> None:
        """End a request, or one sample of it."""

    @property
    def progress_time(self) -> float:
        """`time.monotonic()` of the last sign that the engine gets on with its work."""

    def kill(self) -> None:
        """End the engine at once; the listener is told of its death."""

    async def close(self) -> None:
        """End the engine and free everything. May be called again, and before `start` has returned."""


@runtime_checkable
class Host(Protocol):
    """An engine that further processes can be attached to; as of `ProcessClient`."""

    def attach(self, front: int, endpoint: str) -> None: ...
    def detach(self, front: int) -> None: ...


class ChannelClient:
    """What clients do with what comes over their channel: wait until the engine is ready, then tell the listener."""

    def __init__(self) -> None:
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

    def _pass_on(self, message: messages.FromEngine) -> bool:
        """See to what every engine says. False if it is something else."""
        listener = self._listener
        if listener is None:
            return True
        if isinstance(message, Outputs):
            self._progress_time = time.monotonic()
            listener.on_outputs(message.step)
        elif isinstance(message, Heartbeat):
            self._progress_time = max(self._progress_time, message.progress_time)
            listener.on_stats(message.stats)
        elif isinstance(message, RequestFailed):
            listener.on_request_failed(message.handle, message.failure.error())
        elif isinstance(message, Ready):
            if self._ready is not None and not self._ready.done():
                self._progress_time = time.monotonic()
                self._ready.set_result(message.info)
        else:
            return False
        return True

    def _wait_no_longer(self) -> None:
        """End a start that is under way, for a client that is closed."""
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(EngineDeadError("The engine was closed while it started."))
            self._ready.exception()  # nobody may be waiting any more


class ProcessClient(ChannelClient):
    """Runs an engine as a child process, over a UNIX socket in a folder that only this user can enter.

    Args:
        module: what `python -m` runs; it must call `octavo.engine.process.main`.
        arguments: of its command line.
    """

    def __init__(self, config: EngineConfig, *, module: str = MODEL_ENGINE, arguments: Sequence[str] = ()) -> None:
        super().__init__()
        self._config = config
        self._module, self._arguments = module, arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._alive_fd = -1  # the read end of a pipe whose other end only the child holds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gone: asyncio.Event = asyncio.Event()
        self._closing = False

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        return self._process.pid if self._process is not None else None

    @property
    def _started(self) -> bool:
        """It has been ready; from there on the listener is told of the end."""
        ready = self._ready
        return ready is not None and ready.done() and not ready.cancelled() and ready.exception() is None

    async def start(self, listener: EngineListener, progress: Progress | None = None) -> EngineInfo:
        """Start the child and wait until its model is loaded.

        Raises:
            ConfigError: there is no place for a socket in the folder for temporary files.
            OctavoError: as raised in the child: of the same class, with the same words.
            EngineDeadError: the child ended without a word.
        """
        self._loop = asyncio.get_running_loop()
        self._listener, self._progress = listener, progress
        self._ready = self._loop.create_future()
        try:
            self._channel = Channel(self._take)
            self._spawn(self._channel.endpoint)
            return await self._ready
        except BaseException:
            await self.close()
            raise

    def _spawn(self, endpoint: str) -> None:
        """Start the child, or take the one that was started ahead, and tell it what to load."""
        child = start_engine(self._module, self._arguments)
        self._process, self._alive_fd = child.process, child.alive_fd
        launch = Launch(endpoint, os.getpid(), child.by_main_thread, self._config)
        self._on_loop.add_reader(self._alive_fd, self._on_end)
        if child.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                child.process.stdin.write(msgspec.json.encode(launch) + b"\n")
                child.process.stdin.flush()

    @property
    def _on_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise RuntimeError("the engine has not been started")
        return self._loop

    # -- messages ------------------------------------------------------------------------------------------------

    def add(self, request: EngineRequest) -> None:
        """Send a request; its answers go to the listener. Raises EngineDeadError."""
        self._send(AddRequest(request))

    def abort(self, handle: int, index: int | None = None) -> None:
        """End a request or one of its samples. An engine that is gone has ended it already."""
        with contextlib.suppress(EngineDeadError):
            self._send(Abort(handle, index))

    def _send(self, message: messages.ToEngine) -> None:
        if self._channel is None or self._channel.closed or self._gone.is_set() or self._error is not None:
            raise self._death("The engine has ended.")
        if not self._channel.send(message):
            raise self._death("The engine's process cannot be reached.")

    def _receive(self) -> None:
        if self._channel is not None:
            self._channel.receive()

    def _take(self, message: messages.FromEngine) -> None:
        if self._pass_on(message):
            return
        if isinstance(message, StartupProgress):
            if self._progress is not None:
                self._progress(message.phase, message.fraction)
        elif isinstance(message, StartupFailed):
            self._fail(_with_trace(message.failure.error(), message.trace))
        elif isinstance(message, EngineFailed):
            self._fail(_with_trace(self._death(f"The engine failed: {message.failure.message}"), message.trace))

    # -- further processes that ask it ---------------------------------------------------------------------------

    def attach(self, front: int, endpoint: str) -> None:
        """Let the engine take requests from another process too, and answer it. Raises EngineDeadError.

        Args:
            front: its number, above 0; its requests' handles are those of `octavo.engine.messages.first_handle`.
            endpoint: of the `Channel` that it has opened.
        """
        self._send(Attach(front, endpoint))

    def detach(self, front: int) -> None:
        """Abort that process's requests and forget it."""
        with contextlib.suppress(EngineDeadError):
            self._send(Detach(front))

    # -- the end -------------------------------------------------------------------------------------------------

    def _on_end(self) -> None:
        """The child is gone. Its last words may say why."""
        self._on_loop.remove_reader(self._alive_fd)
        self._receive()
        if self._error is not None or self._closing or self._started:
            self._finish()
        else:
            self._on_loop.call_later(_LAST_WORDS_SECONDS, self._finish)

    def _finish(self) -> None:
        self._receive()
        self._gone.set()
        if not self._closing:
            self._fail(self._death(f"The engine's process ended unexpectedly ({self._exit_status()})."))

    def _exit_status(self) -> str:
        if self._process is None:
            return "never started"
        try:
            status = self._process.wait(0.2)
        except subprocess.TimeoutExpired:
            return "still ending"
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

    def _death(self, message: str) -> EngineDeadError:
        if isinstance(self._error, EngineDeadError):
            return EngineDeadError(self._error.message, fix=self._error.fix)
        return EngineDeadError(message, fix="Start it again; its last lines on stderr, or the system's log, say more.")

    def _fail(self, error: OctavoError) -> None:
        """Tell whoever waits, once."""
        if self._error is not None or self._closing:
            return
        self._error = error
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(error)
        elif self._started and self._listener is not None:
            self._listener.on_dead(error)

    def kill(self) -> None:
        """End the child at once, also one that is stopped; the listener is told of its death."""
        if self._process is not None and not self._gone.is_set():
            self._process.kill()

    async def close(self) -> None:
        """Ask the child to end, then make it; remove the socket's folder."""
        if not self._closing and self._process is not None and not self._gone.is_set():
            with contextlib.suppress(EngineDeadError):
                self._send(Shutdown())
        self._closing = True
        self._wait_no_longer()
        if self._process is not None and not self._gone.is_set():
            grace = _CLOSE_SECONDS if self._started else 0.0  # one that still loads would not read its inbox
            try:
                await asyncio.wait_for(self._gone.wait(), grace)
            except TimeoutError:
                self._process.kill()
                await self._gone.wait()
        self._free()

    def _free(self) -> None:
        if self._process is not None:
            if self._process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    self._process.stdin.close()
            self._process.wait()
            self._process = None
        if self._alive_fd >= 0:
            self._on_loop.remove_reader(self._alive_fd)
            os.close(self._alive_fd)
            self._alive_fd = -1
        if self._channel is not None:
            self._channel.close()


def _with_trace(error: OctavoError, trace: str) -> OctavoError:
    """The child's traceback goes along as a note, which `-v` shows."""
    if trace:
        error.add_note(trace)
    return error


ClientFactory = Callable[[EngineConfig], EngineClient]
