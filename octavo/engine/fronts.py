"""`Fronts`: the engine's ends of its channels to further processes that ask it, beside its parent.

Each has a socket of its own, so that one that is slow or dead holds up no other. A request's handle says whose it is
(`octavo.engine.messages.front_of`); one that comes from somebody else is not taken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec
import zmq

from octavo.engine import messages
from octavo.engine.info import EngineInfo
from octavo.engine.messages import AddRequest, Failure, FromEngine, Outputs, Ready, RequestFailed, front_of
from octavo.errors import InvalidRequestError, OctavoError
from octavo.request import EngineRequest, StepFigures, StepOutputs

_A_ROUND = 32  # messages of one process before it is the next one's turn


class Requests(Protocol):
    """The part of an engine that takes requests."""

    info: EngineInfo

    def add(self, request: EngineRequest) -> None: ...
    def abort(self, handle: int, index: int | None = None) -> bool: ...


class Front:
    """One process: its socket, and how many samples of each of its requests are open."""

    __slots__ = ("number", "open", "socket")

    def __init__(self, number: int, socket: zmq.Socket[bytes]):
        self.number = number
        self.socket = socket
        self.open: dict[int, int] = {}

    def send(self, message: FromEngine) -> None:
        """Queue a message; it never waits, and one to a process that has died goes nowhere."""
        with contextlib.suppress(zmq.Again):
            self.socket.send(messages.encode(message), zmq.NOBLOCK)


class Fronts:
    """All of them, by number.

    Args:
        connect: makes a socket that is connected to an endpoint.
    """

    def __init__(self, engine: Requests, connect: Callable[[str], zmq.Socket[bytes]]):
        self._engine = engine
        self._connect = connect
        self._fronts: dict[int, Front] = {}

    def __len__(self) -> int:
        return len(self._fronts)

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        """To wait for messages on."""
        return [front.socket for front in self._fronts.values()]

    def attach(self, number: int, endpoint: str) -> None:
        """Serve another process; what was attached under its number before is let go."""
        self.detach(number)
        front = self._fronts[number] = Front(number, self._connect(endpoint))
        front.send(Ready(self._engine.info))

    def detach(self, number: int) -> None:
        """Abort a process's requests and close its channel."""
        front = self._fronts.pop(number, None)
        if front is None:
            return
        for handle in front.open:
            self._engine.abort(handle)
        front.socket.close(linger=0)

    def close(self) -> None:
        """Close all channels; last words are still delivered."""
        for front in self._fronts.values():
            front.socket.close()
        self._fronts.clear()

    def tell(self, message: FromEngine) -> None:
        """Say something to all of them."""
        for front in self._fronts.values():
            front.send(message)

    def drain(self) -> None:
        """Take every message that is there, a few of each process in turn."""
        waiting = list(self._fronts.values())
        while waiting:
            waiting = [front for front in waiting if self._drain_some(front)]

    def _drain_some(self, front: Front) -> bool:
        """Whether there may be more."""
        for _ in range(_A_ROUND):
            try:
                data = front.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return False
            message = messages.decode_from_front(data)
            if isinstance(message, AddRequest):
                self._add(front, message.request)
            elif front_of(message.handle) == front.number and self._engine.abort(message.handle, message.index):
                self._ended(front, message.handle, whole=message.index is None)
        return True

    def _add(self, front: Front, request: EngineRequest) -> None:
        try:
            if front_of(request.handle) != front.number:
                raise InvalidRequestError("The handle is another process's.", param="handle")
            self._engine.add(request)
        except OctavoError as error:
            front.send(RequestFailed(request.handle, Failure.of(error)))
        else:
            front.open[request.handle] = request.params.n

    def send(self, step: StepOutputs) -> None:
        """Give each process what a step brought for it."""
        for number, part in split(step):
            front = self._fronts.get(number)
            if front is None:
                continue
            for finished in part.finished:
                self._ended(front, finished.handle)
            front.send(Outputs(part))

    @staticmethod
    def _ended(front: Front, handle: int, *, whole: bool = False) -> None:
        left = front.open.get(handle, 0) - 1
        if left > 0 and not whole:
            front.open[handle] = left
        else:
            front.open.pop(handle, None)


def split(step: StepOutputs) -> Iterator[tuple[int, StepOutputs]]:
    """A step's outputs by the process that they are for, each with the engine's figures; the step's own figures come
    with the first alone, so that all processes together count each step once."""
    parts: dict[int, StepOutputs] = {}

    def part(handle: int) -> StepOutputs:
        number = front_of(handle)
        found = parts.get(number)
        if found is None:
            stats = step.stats
            if parts and stats is not None:
                stats = msgspec.structs.replace(stats, last_step=StepFigures())
            found = parts[number] = StepOutputs([], [], [], [], [], [], [], stats, [])
        return found

    for handle, index, token in zip(step.handles, step.indices, step.tokens, strict=True):
        found = part(handle)
        found.handles.append(handle)
        found.indices.append(index)
        found.tokens.append(token)
    for finished in step.finished:
        part(finished.handle).finished.append(finished)
    for started in step.started:
        part(started.handle).started.append(started)
    for scored in step.logprobs:
        part(scored.handle).logprobs.append(scored)
    for prompt in step.prompt_logprobs:
        part(prompt.handle).prompt_logprobs.append(prompt)
    for pooled in step.pooled:
        part(pooled.handle).pooled.append(pooled)
    yield from parts.items()
