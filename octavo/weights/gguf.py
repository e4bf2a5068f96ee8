"""A bounded reader for GGUF files (versions 2 and 3, little-endian), on a memory map.

Every count, length and offset is checked against the file before it is used; a damaged file raises ModelFileError and
nothing else. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.errors import ModelFileError

MAX_METADATA = 65_536
MAX_TENSORS = 65_536
MAX_STRING = 16 << 20
MAX_ARRAY = 1 << 24
MAX_ARRAY_STRINGS = 1 << 22  # in all arrays together: they are walked one by one
MAX_DIMS = 4

_SCALARS: dict[int, tuple[str, int]] = {
    0: ("B", 1), 1: ("b", 1), 2: ("H", 2), 3: ("h", 2), 4: ("I", 4), 5: ("i", 4),
    6: ("f", 4), 7: ("?", 1), 10: ("Q", 8), 11: ("q", 8), 12: ("d", 8),
}  # fmt: skip
_STRING, _ARRAY = 8, 9

BLOCKS: dict[int, tuple[str, int, int]] = {  # type id: name, elements of a block, bytes of a block
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
}  # fmt: skip
_OTHER_TYPES = {  # known by name only, for the error
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor's entry. `shape` is in torch's order (slowest axis first); `offset` is from the file's start."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    nbytes: int

    @property
    def type_name(self) -> str:
        return BLOCKS[self.type_id][0]


class GGUFFile:
    """A GGUF file's metadata and tensors.

    Attributes:
        metadata: key → scalar, str, or list; long arrays are decoded when they are first asked for.
        tensors: name → entry.

    Raises:
        ModelFileError: the file is no GGUF, damaged, truncated, or holds a type that is not supported.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{self.path} cannot be read: {error}.", fix="Download the file again.") from error
        try:
            header = _Header(self._map, self.path)
            self.metadata: Mapping[str, Any] = header.metadata
            self.tensors: dict[str, GGUFTensor] = header.tensors
        except BaseException:
            self._map.close()
            raise

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The tensor's bytes, as a view of the file."""
        tensor = self.tensors[name]
        return np.frombuffer(self._map, np.uint8, tensor.nbytes, tensor.offset)

    def close(self) -> None:
        """Let go of the file; views that are still held keep it mapped."""
        try:
            self._map.close()
        except BufferError:  # arrays still look into the map; it goes when they do
            return

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Metadata(Mapping[str, Any]):
    """Values by key; arrays are kept as offsets until asked for."""

    def __init__(self, header: _Header):
        self._header = header
        self._values: dict[str, Any] = {}
        self._arrays: dict[str, int] = {}

    def put(self, key: str, value: Any) -> None:
        self._values[key] = value

    def put_array(self, key: str, offset: int) -> None:
        self._arrays[key] = offset
        self._values[key] = None

    def __getitem__(self, key: str) -> Any:
        if key in self._arrays:
            self._values[key] = self._header.array(self._arrays.pop(key), key)
        return self._values[key]

    def __contains__(self, key: object) -> bool:  # Mapping's own would decode an array to find out
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class _Header:
    """Walks the header once, skipping over arrays; `array` decodes one later."""

    def __init__(self, data: mmap.mmap, path: Path):
        self._data, self._path, self._size, self._at = data, path, len(data), 0
        self._array_strings = 0
        if self._size < 24 or data[:4] != b"GGUF":
            raise self._damaged("it does not begin with GGUF")
        version = self._number("I", 4, "version", at=4)
        if version not in (2, 3):
            if version in (2 << 24, 3 << 24):
                raise self._damaged("it is big-endian, which is not supported")
            raise self._damaged(f"its version is {version}; 2 and 3 are supported")
        num_tensors = self._count("number of tensors", MAX_TENSORS, at=8)
        num_metadata = self._count("number of metadata keys", MAX_METADATA, at=16)
        self._at = 24
        self.metadata = _Metadata(self)
        for _ in range(num_metadata):
            self._read_metadata()
        self.tensors = self._read_tensors(num_tensors)

    def _damaged(self, why: str) -> ModelFileError:
        return ModelFileError(
            f"{self._path} is not a usable GGUF file: {why} (near byte {self._at}).",
            fix="Download the file again.",
        )

    def _need(self, count: int, what: str) -> None:
        if count < 0 or self._at + count > self._size:
            raise self._damaged(f"it ends inside {what}")

    def _number(self, code: str, size: int, what: str, at: int | None = None) -> Any:
        if at is not None:
            self._at = at
        self._need(size, what)
        value = struct.unpack_from("<" + code, self._data, self._at)[0]
        self._at += size
        return value

    def _count(self, what: str, limit: int, at: int | None = None) -> int:
        value = int(self._number("Q", 8, what, at))
        if value > limit:
            raise self._damaged(f"{what} is {value}, more than {limit}")
        return value

    def _string(self, what: str) -> str:
        length = self._count(f"the length of {what}", MAX_STRING)
        self._need(length, what)
        text = self._data[self._at : self._at + length]
        self._at += length
        return text.decode("utf-8", "replace")

    def _read_metadata(self) -> None:
        key = self._string("a metadata key")
        if key in self.metadata:
            raise self._damaged(f"the key {key!r} is there twice")
        kind = self._number("I", 4, f"the type of {key!r}")
        if kind == _STRING:
            self.metadata.put(key, self._string(key))
        elif kind == _ARRAY:
            self.metadata.put_array(key, self._at)
            self._skip_array(key)
        elif kind in _SCALARS:
            self.metadata.put(key, self._number(*_SCALARS[kind], key))
        else:
            raise self._damaged(f"{key!r} is of the unknown type {kind}")

    def _array_head(self, key: str) -> tuple[int, int]:
        kind = self._number("I", 4, f"the element type of {key!r}")
        if kind != _STRING and kind not in _SCALARS:
            raise self._damaged(f"{key!r} is an array of the unsupported type {kind}")
        return kind, self._count(f"the length of {key!r}", MAX_ARRAY)

    def _skip_array(self, key: str) -> None:
        kind, count = self._array_head(key)
        if kind != _STRING:
            self._need(count * _SCALARS[kind][1], key)
            self._at += count * _SCALARS[kind][1]
            return
        data, at, size, unpack = self._data, self._at, self._size, struct.Struct("<Q").unpack_from
        if count * 8 > size - at:
            raise self._damaged(f"it ends inside {key!r}")
        self._array_strings += count
        if self._array_strings > MAX_ARRAY_STRINGS:
            raise self._damaged(f"its arrays have more than {MAX_ARRAY_STRINGS} strings")
        for _ in range(count):
            if at + 8 > size:
                self._at = at
                raise self._damaged(f"it ends inside {key!r}")
            length = unpack(data, at)[0]
            at += 8 + length
            if length > MAX_STRING or at > size:
                self._at = min(at, size)
                raise self._damaged(f"a string of {key!r} has the length {length}")
        self._at = at

    def array(self, offset: int, key: str) -> list[Any]:
        """Decode the array that was skipped at `offset`."""
        self._at = offset
        kind, count = self._array_head(key)
        if kind != _STRING:
            code, _ = _SCALARS[kind]
            view = np.frombuffer(self._data, np.dtype("<" + code if code != "?" else "?"), count, self._at)
            values: list[Any] = view.tolist()
            return values
        data, at, unpack = self._data, self._at, struct.Struct("<Q").unpack_from
        out = []
        for _ in range(count):
            end = at + 8 + unpack(data, at)[0]
            out.append(data[at + 8 : end].decode("utf-8", "replace"))
            at = end
        return out

    def _read_tensors(self, count: int) -> dict[str, GGUFTensor]:
        entries: list[tuple[str, tuple[int, ...], int, int]] = []
        for _ in range(count):
            name = self._string("a tensor name")
            num_dims = self._number("I", 4, f"the rank of {name!r}")
            if not 1 <= num_dims <= MAX_DIMS:
                raise self._damaged(f"the tensor {name!r} has {num_dims} dimensions")
            dims = tuple(int(self._number("Q", 8, f"the shape of {name!r}")) for _ in range(num_dims))
            type_id = self._number("I", 4, f"the type of {name!r}")
            entries.append((name, dims, type_id, int(self._number("Q", 8, f"the offset of {name!r}"))))
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {alignment!r}, which is no power of two")
        base = -(-self._at // alignment) * alignment
        tensors: dict[str, GGUFTensor] = {}
        for name, dims, type_id, offset in entries:
            if name in tensors:
                raise self._damaged(f"the tensor {name!r} is there twice")
            tensors[name] = self._tensor(name, dims, type_id, base + offset, alignment)
        return tensors

    def _tensor(self, name: str, dims: tuple[int, ...], type_id: int, offset: int, alignment: int) -> GGUFTensor:
        if type_id not in BLOCKS:
            kind = _OTHER_TYPES.get(type_id, f"number {type_id}")
            raise ModelFileError(
                f"{self._path}: the tensor {name!r} has the quantization type {kind}, which is not supported.",
                fix=f"Use a file with one of: {', '.join(block[0] for block in BLOCKS.values())}.",
                code="unsupported_quantization",
            )
        type_name, block, size = BLOCKS[type_id]
        if any(not 1 <= dim <= 1 << 40 for dim in dims) or dims[0] % block:
            raise self._damaged(f"the tensor {name!r} has the shape {list(dims)}, impossible for {type_name}")
        nbytes = math.prod(dims) // block * size
        if offset % alignment or offset + nbytes > self._size:
            raise self._damaged(f"the tensor {name!r} ({nbytes} bytes at {offset}) does not lie inside it")
        return GGUFTensor(name, tuple(reversed(dims)), type_id, offset, nbytes)
