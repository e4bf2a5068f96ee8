"""What the engine's process and its client say to each other: tagged structs in MessagePack, nothing else.

A decoder builds only the types named here, so bytes from the socket can never become code. The config travels the same
way, as JSON on the child's stdin.
"""

from __future__ import annotations

import inspect

import msgspec

from octavo import errors
from octavo.config import EngineConfig
from octavo.engine.info import EngineInfo
from octavo.errors import OctavoError, OverloadedError
from octavo.request import EngineRequest, EngineStats, StepOutputs


class Launch(msgspec.Struct, frozen=True):
    """First line of the child's stdin.

    Attributes:
        endpoint: ZeroMQ address that the parent has bound, `ipc://...`.
        parent: process id that must still be the child's parent.
        bound_to_parent: ask the kernel to kill the child with the parent. Linux counts the parent's *thread* here,
            so this is set only where the main thread starts the child.
        config: the engine's options.
    """

    endpoint: str
    parent: int
    bound_to_parent: bool
    config: EngineConfig


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """An `OctavoError` in transit. `kind` names its class."""

    kind: str
    code: str
    message: str
    fix: str = ""
    param: str | None = None
    retry_after: float = 1.0

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Any exception; one that is not Octavo's is a fault of ours and travels as an `OctavoError`."""
        if not isinstance(error, OctavoError):
            return cls("OctavoError", OctavoError.code, f"{type(error).__name__}: {error}")
        after = error.retry_after if isinstance(error, OverloadedError) else 1.0
        return cls(type(error).__name__, error.code, error.message, error.fix, error.param, after)

    def error(self) -> OctavoError:
        """The exception, of the class it had."""
        kind = ERROR_KINDS.get(self.kind, OctavoError)
        if issubclass(kind, OverloadedError):
            return kind(self.message, retry_after=self.retry_after, fix=self.fix)
        return kind(self.message, fix=self.fix, param=self.param, code=self.code)


ERROR_KINDS = {
    name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, OctavoError)
}


class AddRequest(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Take a request. Its handle comes back in `Outputs`, or in a `RequestFailed`."""

    request: EngineRequest


class Abort(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """End a request, or one sample of it; nothing is answered."""

    handle: int
    index: int | None = None


class Attach(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Serve another process as well: connect to its endpoint and say `Ready` there. What was attached under this number
    before is let go. Only the parent may ask it."""

    front: int
    endpoint: str


class Detach(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Abort the requests of another process and forget it. Only the parent may ask it."""

    front: int


class Shutdown(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Free everything and end."""


class StartupProgress(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A phase of loading, and the fraction of it that is done, 0 to 1."""

    phase: str
    fraction: float


class Ready(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The model is loaded; requests may come."""

    info: EngineInfo


class StartupFailed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """There will be no engine; the child ends. `trace` is the traceback as text, for verbose reports."""

    failure: Failure
    trace: str = ""


class Outputs(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """What one step brought."""

    step: StepOutputs


class RequestFailed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The engine did not take a request."""

    handle: int
    failure: Failure


class EngineFailed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A step raised: the engine's state cannot be trusted any more. All open requests are lost; the child ends."""

    failure: Failure
    trace: str = ""


class Heartbeat(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Sent about once a second, and when the work runs out.

    Attributes:
        progress_time: `time.monotonic()`, which all processes of a host share, when a step last brought anything or
            there was nothing to do.
    """

    progress_time: float
    stats: EngineStats


_FRONT_SHIFT = 40  # a number for each front process ever started, and handles for thirty years of each

ToEngine = AddRequest | Abort | Attach | Detach | Shutdown
FromFront = AddRequest | Abort
FromEngine = StartupProgress | Ready | StartupFailed | Outputs | RequestFailed | EngineFailed | Heartbeat

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_front = msgspec.msgpack.Decoder(FromFront).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode


def first_handle(front: int) -> int:
    """The first of the handles that a process may use; those of two processes differ. The parent is number 0."""
    return (front << _FRONT_SHIFT) + 1


def front_of(handle: int) -> int:
    """The number of the process that a handle is of."""
    return handle >> _FRONT_SHIFT
