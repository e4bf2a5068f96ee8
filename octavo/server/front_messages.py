"""What a server's front processes and the one that keeps them say to each other: tagged structs in MessagePack, each
after its length, over a pair of sockets that has no name."""

from __future__ import annotations

import asyncio

import msgspec

from octavo.config import EngineConfig, ServerOptions
from octavo.engine.messages import Failure

_LENGTH_BYTES = 4
_MAX_MESSAGE_BYTES = 64 << 20  # pages of metrics, of all fronts


class Launch(msgspec.Struct, frozen=True, tag=True):
    """The first message to a front.

    Attributes:
        number: above 0; no two fronts of a server ever have the same.
        config, options: with the front's share of what all fronts may take.
        digests: of the keys that open the server.
        parent: process id that must still be the front's parent.
        bound_to_parent: as of `octavo.engine.messages.Launch`.
    """

    number: int
    config: EngineConfig
    options: ServerOptions
    digests: tuple[bytes, ...]
    parent: int
    bound_to_parent: bool


class Loading(msgspec.Struct, frozen=True, tag=True):
    """How far the engine is: a phase, and the fraction of it that is done, 0 to 1."""

    phase: str
    fraction: float


class EngineDied(msgspec.Struct, frozen=True, tag=True):
    """The engine died; the next one will come."""

    failure: Failure


class EngineLost(msgspec.Struct, frozen=True, tag=True):
    """There is no engine, and there will be none."""

    failure: Failure


class Keys(msgspec.Struct, frozen=True, tag=True):
    """The keys that open the server from now on."""

    digests: tuple[bytes, ...]


class Signalled(msgspec.Struct, frozen=True, tag=True):
    """The server shall end: let what is open finish; told again, end at once."""


class TellPage(msgspec.Struct, frozen=True, tag=True):
    """Tell your own page of metrics."""

    number: int


class Pages(msgspec.Struct, frozen=True, tag=True):
    """The other fronts' pages of metrics, and what those that have died had counted."""

    number: int
    others: list[str]
    retired: str


class WantEngine(msgspec.Struct, frozen=True, tag=True):
    """Attach the engine to this endpoint as soon as there is one; it takes the place of those named before."""

    endpoint: str


class Serving(msgspec.Struct, frozen=True, tag=True):
    """The model can be asked here."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """This front cannot serve."""

    failure: Failure


class Page(msgspec.Struct, frozen=True, tag=True):
    """A front's own page of metrics."""

    number: int
    text: str


class WantPages(msgspec.Struct, frozen=True, tag=True):
    """Collect the other fronts' pages.

    Attributes:
        own: that of the front that asks.
    """

    number: int
    own: str


ToFront = Launch | Loading | EngineDied | EngineLost | Keys | Signalled | TellPage | Pages
FromFront = WantEngine | Serving | Failed | Page | WantPages

_encode = msgspec.msgpack.Encoder().encode
decode_to_front = msgspec.msgpack.Decoder(ToFront).decode
decode_from_front = msgspec.msgpack.Decoder(FromFront).decode


def write(writer: asyncio.StreamWriter, message: ToFront | FromFront) -> None:
    """Queue a message; nothing happens if the other side has gone."""
    if not writer.is_closing():
        data = _encode(message)
        writer.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)


async def read(reader: asyncio.StreamReader) -> bytes:
    """The next message; b"" when the other side has gone."""
    try:
        size = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
        return await reader.readexactly(size) if size <= _MAX_MESSAGE_BYTES else b""
    except (asyncio.IncompleteReadError, OSError):
        return b""
