"""The engine's own process (`octavo.engine_process` is what runs), started by `octavo.engine.client.ProcessClient`.

One loop: drain the inbox, run a step, send what it brought. It never waits while there is work. The process ends when
it is told to, when a step raises, and when its parent is gone.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Protocol

import msgspec
import zmq

from octavo.config import EngineConfig
from octavo.engine import messages
from octavo.engine.fronts import Fronts
from octavo.engine.info import EngineInfo
from octavo.engine.messages import (
    Abort,
    AddRequest,
    Attach,
    Detach,
    EngineFailed,
    Failure,
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
from octavo.errors import OctavoError
from octavo.garbage import settle
from octavo.logs import log_as_the_parent
from octavo.request import EngineRequest, EngineStats, StepOutputs

EXIT_STARTUP_FAILED = 3
EXIT_STEP_FAILED = 4

_HEARTBEAT_SECONDS = 1.0
_SPIN_SECONDS = 0.001  # pause where there is work but nothing to compute
_MAX_LAUNCH_BYTES = 1 << 20
_LINGER_MS = 1000
_PR_SET_PDEATHSIG = 1


class EngineLike(Protocol):
    """What the loop drives: `octavo.engine.core.Engine` and `octavo.sim.SimEngine`."""

    info: EngineInfo

    def add(self, request: EngineRequest) -> None: ...
    def abort(self, handle: int, index: int | None = None) -> bool: ...
    def step(self) -> StepOutputs | None: ...
    @property
    def has_work(self) -> bool: ...
    def stats(self) -> EngineStats: ...
    def close(self) -> None: ...


EngineFactory = Callable[[EngineConfig, Progress], EngineLike]


def main(make_engine: EngineFactory) -> int:
    """Serve one engine to the parent process; returns the exit status."""
    launch = msgspec.json.decode(_read_launch(), type=Launch)
    log_as_the_parent()
    _tie_to_parent(launch)
    context = zmq.Context()

    def connect(endpoint: str) -> zmq.Socket[bytes]:
        socket = context.socket(zmq.PAIR)
        socket.set(zmq.SNDHWM, 0)  # a slow reader must not stop the engine; its open requests bound what can pile up
        socket.set(zmq.RCVHWM, 0)
        socket.set(zmq.LINGER, _LINGER_MS)
        socket.set(zmq.RECONNECT_IVL, -1)  # whoever takes the name of a process that has died is somebody else
        socket.connect(endpoint)
        return socket

    socket = connect(launch.endpoint)
    _send(socket, StartupProgress("start the engine", 0.0))  # its name can go
    try:
        return _serve(launch.config, make_engine, socket, connect)
    finally:
        socket.close()
        context.term()


def _serve(
    config: EngineConfig,
    make_engine: EngineFactory,
    socket: zmq.Socket[bytes],
    connect: Callable[[str], zmq.Socket[bytes]],
) -> int:
    try:
        engine = make_engine(config, lambda phase, fraction: _send(socket, StartupProgress(phase, fraction)))
    except Exception as error:
        _send(socket, StartupFailed(Failure.of(error), traceback.format_exc()))
        return error.exit_code if isinstance(error, OctavoError) else EXIT_STARTUP_FAILED
    settle()
    _send(socket, Ready(engine.info))
    fronts = Fronts(engine, connect)
    try:
        _Loop(engine, socket, fronts).run()
    except Exception as error:
        _send(socket, EngineFailed(Failure.of(error), traceback.format_exc()))
        return EXIT_STEP_FAILED
    finally:
        fronts.close()
    engine.close()
    return 0


class _Loop:
    def __init__(self, engine: EngineLike, socket: zmq.Socket[bytes], fronts: Fronts):
        self._engine = engine
        self._socket = socket
        self._fronts = fronts
        self._poller = self._make_poller()
        self._stopping = False
        self._progress_time = self._told_time = time.monotonic()

    def run(self) -> None:
        """Until a `Shutdown` comes. What a step raises goes to the caller."""
        engine = self._engine
        fruitless = 0
        while not self._stopping:
            if not engine.has_work:
                self._rest()
            elif fruitless > 1:  # one turn without outputs is usual: run-ahead settles a step later
                self._poller.poll(int(1000 * _SPIN_SECONDS))
            self._drain()
            if not engine.has_work:
                continue
            outputs = engine.step()
            now = time.monotonic()
            if outputs is None:
                fruitless += 1
            else:
                fruitless, self._progress_time = 0, now
                self._give(outputs)
            if now - self._told_time >= _HEARTBEAT_SECONDS:
                self._tell(now)

    def _rest(self) -> None:
        """Say how things stand, and again every second, until a message comes."""
        while True:
            self._progress_time = time.monotonic()
            self._tell(self._progress_time)
            if self._poller.poll(int(1000 * _HEARTBEAT_SECONDS)):
                self._progress_time = time.monotonic()
                return

    def _tell(self, now: float) -> None:
        self._told_time = now
        sign = Heartbeat(self._progress_time, self._engine.stats())
        _send(self._socket, sign)
        self._fronts.tell(sign)

    def _give(self, outputs: StepOutputs) -> None:
        """To whom they belong. One who asks alone gets them as they are."""
        if self._fronts:
            self._fronts.send(outputs)
        else:
            _send(self._socket, Outputs(outputs))

    def _make_poller(self) -> zmq.Poller:
        poller = zmq.Poller()
        for socket in (self._socket, *self._fronts.sockets):
            poller.register(socket, zmq.POLLIN)
        return poller

    def _drain(self) -> None:
        """Take every message that is there."""
        self._fronts.drain()
        while not self._stopping:
            try:
                data = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            message = messages.decode_to_engine(data)
            if isinstance(message, AddRequest):
                self._add(message.request)
            elif isinstance(message, Abort):
                self._engine.abort(message.handle, message.index)
            elif isinstance(message, Attach):
                self._fronts.attach(message.front, message.endpoint)
                self._poller = self._make_poller()
            elif isinstance(message, Detach):
                self._fronts.detach(message.front)
                self._poller = self._make_poller()
            elif isinstance(message, Shutdown):
                self._stopping = True

    def _add(self, request: EngineRequest) -> None:
        try:
            self._engine.add(request)
        except OctavoError as error:
            _send(self._socket, RequestFailed(request.handle, Failure.of(error)))


def _send(socket: zmq.Socket[bytes], message: messages.FromEngine) -> None:
    socket.send(messages.encode(message))


def _read_launch() -> bytes:
    """The first line of stdin. Read byte by byte: what follows, which is only ever its end, is the watcher's."""
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < _MAX_LAUNCH_BYTES:
        byte = os.read(0, 1)
        if not byte:
            sys.exit("octavo.engine.process is started by octavo; it expects its config on stdin.")
        line += byte
    return bytes(line)


def _tie_to_parent(launch: Launch) -> None:
    """End with the parent, whatever becomes of it.

    Ctrl-C and a service manager's SIGTERM reach all processes of the group; only the parent shall act on them, as it
    lets open requests finish first.
    """
    leave_signals_to_the_parent()
    if launch.bound_to_parent:
        die_with(launch.parent)
    threading.Thread(target=_end_with_stdin, args=(launch.endpoint,), name="parent-watch", daemon=True).start()


def leave_signals_to_the_parent() -> None:
    """Ignore what asks the whole group of processes to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def die_with(parent: int) -> None:
    """Have the kernel end this process when the parent's thread that started it ends. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the kernel knew of the wish
            os._exit(1)


def _end_with_stdin(endpoint: str) -> None:
    """Wait for the end of stdin, which only the parent's death or goodbye brings; then leave at once."""
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass
    shutil.rmtree(os.path.dirname(endpoint.removeprefix("ipc://")), ignore_errors=True)
    os._exit(1)
