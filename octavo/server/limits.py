"""Bounds on what a client may send, and how they are checked at no more cost than a pass over the bytes."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass

from octavo.config import ServerOptions
from octavo.errors import InvalidRequestError, OverloadedError

MAX_DEPTH = 64
MAX_CONTAINERS = 1 << 18
MAX_VALUES = 1 << 22
BODY_BYTES_PER_SECOND = 4096
RESERVED_CONNECTIONS = 64  # beyond --max-connections, for probes
_OTHER_DESCRIPTORS = 256  # that the process has open beside connections

_TO_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{},"'))


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one connection, and all of them, may take.

    Attributes:
        head_bytes: of a request line and headers together.
        headers: how many.
        target_bytes: of the path and query.
        head_seconds: from a request's first byte, or the connection's beginning, to the end of its head.
        write_seconds: that a client may leave what was written for it unread.
        connections: open at a time; `RESERVED_CONNECTIONS` more are taken, and answered only if they ask as probes do.
    """

    head_bytes: int = 64 << 10
    headers: int = 128
    target_bytes: int = 8 << 10
    head_seconds: float = 30.0
    write_seconds: float = 60.0
    connections: int = 8192

    @classmethod
    def of(cls, options: ServerOptions) -> ConnectionLimits:
        """As the flags say."""
        return cls(
            head_seconds=options.read_timeout,
            write_seconds=options.write_timeout,
            connections=options.max_connections,
        )


class BodyBudget:
    """Bytes of bodies that all requests may hold together, from their receipt to the end of the reply."""

    def __init__(self, size: int):
        self.size = self.free = size

    def take(self, num_bytes: int) -> None:
        """Count bytes that came. Raises OverloadedError: there are too many."""
        if num_bytes > self.free:
            raise OverloadedError(
                f"The server holds {self.size - self.free} bytes of requests already.",
                retry_after=2.0,
                fix="Try again later, with smaller ones.",
            )
        self.free -= num_bytes

    def give(self, num_bytes: int) -> None:
        """Bytes are held no longer."""
        self.free += num_bytes


def check_shape(data: bytes) -> None:
    """Refuse JSON that is nested deeper than `MAX_DEPTH` or made of absurdly many parts, before anything builds it.

    Works on the structure alone: strings are cut out, then the innermost pairs of brackets are taken away, level by
    level. What is not JSON may pass; the parser refuses it.

    Raises:
        InvalidRequestError: `too_deep` or `too_many_values`.
    """
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH and len(data) <= MAX_VALUES:
        return
    bare = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(_TO_BRACKETS, _NOT_STRUCTURE)
    structure = b"".join(bare.split(b'"')[::2])
    brackets = structure.replace(b",", b"")
    if len(structure) > MAX_VALUES or len(brackets) > 2 * MAX_CONTAINERS:
        raise InvalidRequestError(
            f"The body has more than {MAX_VALUES} values, or {MAX_CONTAINERS} lists and objects.",
            fix="Send several requests.",
            code="too_many_values",
        )
    for _ in range(MAX_DEPTH):
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b"")
    if b"[]" in brackets or brackets.startswith(b"[" * MAX_DEPTH):
        raise InvalidRequestError(
            f"The body is nested deeper than {MAX_DEPTH} levels.", fix="Send flatter values.", code="too_deep"
        )


def check_choices(num_prompts: int, n: int, most: int) -> None:
    """Refuse a request for more sequences than a client may have at a time. Raises InvalidRequestError."""
    if n > 0 and num_prompts * n > most:
        raise InvalidRequestError(
            f"{num_prompts} prompts with {n} choices each are {num_prompts * n} sequences, more than {most}.",
            fix="Send several requests, or raise --max-choices.",
            param="n",
        )


def deadline_of(headers: Mapping[bytes, bytes], longest: float) -> float:
    """When a request's time is up, `time.monotonic()`.

    Args:
        longest: seconds that the server allows, 0 for any number. The header `x-request-timeout` may say fewer.

    Raises:
        InvalidRequestError: the header is no positive number.
    """
    given = headers.get(b"x-request-timeout")
    allowed = longest or math.inf
    if given is not None:
        try:
            seconds = float(given) if len(given) <= 32 else math.nan
        except ValueError:
            seconds = math.nan
        if not seconds > 0:
            raise InvalidRequestError("x-request-timeout is no positive number of seconds.", fix="Send one, or none.")
        allowed = min(allowed, seconds)
    return time.monotonic() + allowed


def raise_descriptor_limit(connections: int) -> int:
    """Let the process have descriptors for so many connections, as far as it may; returns for how many."""
    wanted = connections + RESERVED_CONNECTIONS + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard_enough = wanted if hard == resource.RLIM_INFINITY or hard > wanted else hard
    if soft != resource.RLIM_INFINITY and soft < hard_enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_enough, hard))
        soft = hard_enough
    if soft == resource.RLIM_INFINITY:
        return connections
    return max(1, min(connections, soft - RESERVED_CONNECTIONS - _OTHER_DESCRIPTORS))
