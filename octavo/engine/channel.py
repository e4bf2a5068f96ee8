"""`Channel`: the end of a channel to the engine's process that listens, on an event loop."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import zmq

from octavo.engine import messages
from octavo.errors import ConfigError

_TURN_SECONDS = 0.01  # then the event loop gets its turn


class Channel:
    """A UNIX socket in a folder that only this user can enter. The folder goes as soon as the engine has spoken: both
    sides have the socket open then, and nobody needs its name any more.

    Args:
        take: called with each message of the engine, on the event loop; what it returns is not looked at.

    Attributes:
        endpoint: what the engine connects to.

    Raises:
        ConfigError: there is no place for a socket in the folder for temporary files.
    """

    def __init__(self, take: Callable[[messages.FromEngine], object]):
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._folder: Path | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="octavo-"))  # mode 0700
            self.endpoint = f"ipc://{self._folder}/engine"
            self._bind()
        except (OSError, zmq.ZMQError) as error:
            self.close()
            raise ConfigError(
                f"There is no place for the engine's socket in {tempfile.gettempdir()}: {error.strerror}.",
                fix="Set TMPDIR to a folder with a short path that can be written to.",
            ) from error

    def _bind(self) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set(zmq.SNDHWM, 0)
        self._socket.set(zmq.RCVHWM, 0)
        self._socket.set(zmq.LINGER, 0)
        self._socket.bind(self.endpoint)
        self._loop.add_reader(self._socket.fileno(), self.receive)

    @property
    def closed(self) -> bool:
        """Whether there is no socket any more."""
        return self._socket is None

    def send(self, message: messages.ToEngine) -> bool:
        """Send, or say that nobody is there to take it."""
        if self._socket is None:
            return False
        try:
            self._socket.send(messages.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._loop.call_soon(self.receive)  # sending may have used up the descriptor's edge
        return True

    def receive(self) -> None:
        """Take what is there. The descriptor tells of edges only, so it is read until there is nothing left."""
        end = time.monotonic() + _TURN_SECONDS
        while time.monotonic() < end:
            if self._socket is None:
                return
            try:
                data = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.remove_name()
            self._take(messages.decode_from_engine(data))
        self._loop.call_soon(self.receive)

    def remove_name(self) -> None:
        """Take the socket's folder away."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def close(self) -> None:
        """Close the socket and remove its name. May be called again."""
        if self._context is not None:
            if self._socket is not None and not self._socket.closed:
                self._loop.remove_reader(self._socket.fileno())
                self._socket.close()
            self._context.term()
        self._socket = self._context = None
        self.remove_name()
