"""Taking connections: several in each turn of the event loop.

uvloop's own server takes one a turn. A turn in which a thousand streams get a token lasts tens of milliseconds, so
clients that came while there were many streams waited seconds for their turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable

logger = logging.getLogger("octavo.server")

MOST_A_TURN = 32
_PAUSE_SECONDS = 0.2
_NO_ROOM = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Acceptor:
    """Takes connections from a listening socket, which stays its owner's. Other processes may take from it too.

    Args:
        make: the protocol of a connection.
        most_a_turn: connections that one turn of the loop takes.
    """

    def __init__(
        self, listener: socket.socket, make: Callable[[], asyncio.BaseProtocol], most_a_turn: int = MOST_A_TURN
    ):
        self._listener = listener
        self._make = make
        self._most = most_a_turn
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        listener.setblocking(False)
        self._listen()

    def _listen(self) -> None:
        self._timer = None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(self._most):
            try:
                taken, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return  # there is none, or not any more
            except OSError as error:
                self._pause(error)
                return
            task = self._loop.create_task(self._open(taken))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, taken: socket.socket) -> None:
        taken.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(self._make, taken)
        except BaseException as error:
            taken.close()
            if not isinstance(error, OSError):  # the client has gone already
                raise

    def _pause(self, error: OSError) -> None:
        """Without descriptors or memory the listener would be readable for ever: look again a little later."""
        if error.errno not in _NO_ROOM:
            raise error
        logger.error("No connection can be taken: %s. The next try is in %g s.", error.strerror, _PAUSE_SECONDS)
        self._loop.remove_reader(self._listener.fileno())
        self._timer = self._loop.call_later(_PAUSE_SECONDS, self._listen)

    def close(self) -> None:
        """Take no more; connections that are open stay."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        with contextlib.suppress(OSError, ValueError):
            self._loop.remove_reader(self._listener.fileno())

    async def wait_closed(self) -> None:
        """Connections that were being opened are open, or gone."""
        await asyncio.gather(*self._opening, return_exceptions=True)
