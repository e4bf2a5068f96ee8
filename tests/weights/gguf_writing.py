"""GGUF files byte by byte, so that tests can write what no honest writer would."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from octavo.weights.gguf import GGUFFile

Entry = tuple[tuple[int, ...], int, bytes]  # shape in torch's order, type id, data


def text(value: str) -> bytes:
    """A string as GGUF has it: its length in bytes, then the bytes."""
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def typed(value: Any) -> bytes:
    """A metadata value behind its type: int as uint64, float as float32; lists of int, float or str."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<IQ", 10, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    code, kind = ("f", 6) if value and isinstance(value[0], float) else ("i", 5)
    return struct.pack(f"<IIQ{len(value)}{code}", 9, kind, len(value), *value)


def write_gguf(path: Path, metadata: dict[str, Any], tensors: dict[str, Entry], version: int = 3) -> Path:
    """A whole file, tensors at multiples of `general.alignment` (32 without it)."""
    alignment = int(metadata.get("general.alignment", 32))
    entries, data = b"", b""
    for name, (shape, type_id, content) in tensors.items():
        data += bytes(-len(data) % alignment)
        entries += text(name) + struct.pack("<I", len(shape))
        entries += struct.pack(f"<{len(shape)}QIQ", *reversed(shape), type_id, len(data))
        data += content
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key) + typed(value) for key, value in metadata.items()) + entries
    path.write_bytes(head + bytes(-len(head) % alignment) + data)
    return path


def contents(path: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    """What `write_gguf` needs to write the file again."""
    with GGUFFile(path) as file:
        tensors = {name: (entry.shape, entry.type_id, file.raw(name).tobytes()) for name, entry in file.tensors.items()}
        return dict(file.metadata), tensors


def rewritten(path: Path, metadata: dict[str, Any] | None = None, tensors: dict[str, Entry] | None = None) -> Path:
    """Change the file in place: keys and tensors replaced or added; None removes a key."""
    old_metadata, old_tensors = contents(path)
    merged = {**old_metadata, **(metadata or {})}
    kept = {key: value for key, value in merged.items() if value is not None}
    return write_gguf(path, kept, {**old_tensors, **(tensors or {})})
