"""The bytes each token stands for, so that decoding is joining bytes.

Two families cover the models served here: byte-level BPE, whose pieces spell bytes with 256 printable characters
(the table of GPT-2's `encoder.py`), and SentencePiece, whose pieces are text with "▁" for a space and "<0xAB>" for a
single byte. Any other decoder has no such table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"


def _byte_alphabet() -> dict[str, int]:
    """Character to byte: printable Latin-1 stands for itself, the other 68 bytes for U+0100 and up, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + rank): byte for rank, byte in enumerate(others)}


BYTE_ALPHABET = _byte_alphabet()
_TO_LATIN1 = {ord(char): byte for char, byte in BYTE_ALPHABET.items()}


def byte_level_bytes(piece: str) -> bytes:
    """Bytes of a byte-level piece; a piece with a character outside the alphabet stands for its own text."""
    if all(char in BYTE_ALPHABET for char in piece):
        return piece.translate(_TO_LATIN1).encode("latin-1")
    return piece.encode()


def sentencepiece_bytes(piece: str) -> bytes:
    """Bytes of a SentencePiece piece."""
    match = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece.replace(_SPACE, " ").encode()


@dataclass(frozen=True, slots=True)
class PieceCodec:
    """How a tokenizer's pieces become bytes.

    Attributes:
        to_bytes: bytes of one piece.
        strip_leading_space: a decoded text loses one leading space, the one encoding put there.
    """

    to_bytes: Callable[[str], bytes]
    strip_leading_space: bool = False


def piece_codec(decoder: Mapping[str, Any] | None) -> PieceCodec | None:
    """The codec that does what a `tokenizer.json` decoder describes, or None where it is not a matter of bytes."""
    steps = _steps(decoder)
    if steps == ["ByteLevel"]:
        return PieceCodec(byte_level_bytes)
    if steps in (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"]):
        return PieceCodec(sentencepiece_bytes, strip_leading_space=steps[-1] == "Strip")
    return None


def _steps(decoder: Mapping[str, Any] | None) -> list[str] | None:
    """The decoder's steps by name, or None if one of them has settings other than the usual ones."""
    if decoder is None:
        return None
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    for step in steps:
        if step["type"] == "Replace" and (step["pattern"], step["content"]) != ({"String": _SPACE}, " "):
            return None
        if step["type"] == "Strip" and (step["content"], step["start"], step["stop"]) != (" ", 1, 0):
            return None
    return [step["type"] for step in steps]
