"""Safetensors checkpoints, single or sharded; headers are checked here before any tensor is read."""

from __future__ import annotations

import itertools
import json
import math
import mmap
import reprlib
import struct
from pathlib import Path
from typing import Any, TypeGuard

import torch

from octavo.errors import ModelFileError
from octavo.weights.source import check_shape, missing_tensor

MAX_HEADER = 100 << 20
MAX_DIMS = 16
INDEX_NAME = "model.safetensors.index.json"

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


class SafetensorsFile:
    """One file on a memory map. `entries`: name → (dtype, shape, first byte, last byte + 1).

    Raises:
        ModelFileError: the header is damaged, or the data are not where it says.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{path} cannot be read: {error}.", fix="Download the file again.") from error
        self.entries = self._read_header()

    def _damaged(self, why: str) -> ModelFileError:
        return ModelFileError(f"{self.path} is not a usable safetensors file: {why}.", fix="Download the file again.")

    def _read_header(self) -> dict[str, tuple[torch.dtype, tuple[int, ...], int, int]]:
        size = len(self._map)
        if size < 8:
            raise self._damaged("it is shorter than a header")
        length = struct.unpack_from("<Q", self._map, 0)[0]
        if length > MAX_HEADER or 8 + length > size:
            raise self._damaged(f"its header claims {length} bytes, the file has {size}")
        try:
            header = json.loads(self._map[8 : 8 + length])
        except (ValueError, RecursionError) as error:
            raise self._damaged("its header is not JSON") from error
        if not isinstance(header, dict):
            raise self._damaged("its header is no JSON object")
        base = 8 + length
        entries = {
            name: self._entry(name, entry, base, size) for name, entry in header.items() if name != "__metadata__"
        }
        spans = sorted((first, last) for _, _, first, last in entries.values())
        if any(first < last_before for (_, last_before), (first, _) in itertools.pairwise(spans)):
            raise self._damaged("its tensors overlap")
        return entries

    def _entry(self, name: str, entry: Any, base: int, size: int) -> tuple[torch.dtype, tuple[int, ...], int, int]:
        if not isinstance(entry, dict):
            raise self._damaged(f"the entry of {name!r} is no object")
        dtype, shape, span = _DTYPES.get(str(entry.get("dtype"))), entry.get("shape"), entry.get("data_offsets")
        if dtype is None:
            raise self._damaged(f"the tensor {name!r} has the unknown type {reprlib.repr(entry.get('dtype'))}")
        if not _naturals(shape) or not _naturals(span) or len(span) != 2:
            raise self._damaged(f"the tensor {name!r} has a malformed shape or place")
        if math.prod(max(1, n) for n in shape) >= 1 << 63:
            raise self._damaged(f"the tensor {name!r} has the impossible shape {shape}")
        first, last = base + span[0], base + span[1]
        if last > size or last - first != math.prod(shape) * dtype.itemsize:
            raise self._damaged(f"the tensor {name!r} does not lie inside it")
        return dtype, tuple(shape), first, last

    def tensor(self, name: str) -> torch.Tensor:
        """A view of the file's pages (copied when written to)."""
        dtype, shape, first, last = self.entries[name]
        if first == last:
            return torch.empty(shape, dtype=dtype)
        data = torch.frombuffer(self._map, dtype=torch.uint8, count=last - first, offset=first)
        if first % dtype.itemsize:  # a header of odd length: vector loads want aligned numbers
            data = data.clone()
        return data.view(dtype).view(shape)


def _naturals(value: Any) -> TypeGuard[list[int]]:
    """Few and small enough that their product is cheap, whatever the header says."""
    return (
        isinstance(value, list) and len(value) <= MAX_DIMS and all(type(n) is int and 0 <= n < 1 << 63 for n in value)
    )


class SafetensorsSource:
    """A WeightSource over the safetensors files of a folder.

    Raises:
        ModelFileError: no files, a damaged one, or an index that names missing or outside files.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        names = shard_names(folder)
        self._shards = [SafetensorsFile(folder / name) for name in names]
        self._where: dict[str, SafetensorsFile] = {}
        for shard in self._shards:
            for name in shard.entries:
                if name in self._where:
                    raise ModelFileError(
                        f"The tensor {name!r} is in {self._where[name].path.name} and in {shard.path.name}.",
                        fix="Remove the files that do not belong to the model.",
                    )
                self._where[name] = shard

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        if name not in self._where:
            raise missing_tensor(name, str(self._folder))
        shard = self._where[name]
        check_shape(name, shard.entries[name][1], shape)
        return shard.tensor(name)

    def four_bit(self, name: str) -> None:
        """Nothing is stored so."""

    def e4m3(self, name: str) -> None:
        """`octavo.weights.fp8` knows where scales are."""

    def names(self) -> list[str]:
        return list(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def close(self) -> None:
        """Forget the files. Each stays mapped while tensors look into it: unmapping it would pull memory from them."""
        self._shards, self._where = [], {}


def shard_names(folder: Path) -> list[str]:
    """The files of a checkpoint: those of its index, else `model.safetensors`, else all there are."""
    index = folder / INDEX_NAME
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise ModelFileError(f"{index} is not a usable index.", fix="Download the file again.") from error
        for name in names:
            if not isinstance(name, str) or "/" in name or "\\" in name or "\0" in name or name in ("", ".", ".."):
                raise ModelFileError(f"{index} names {name!r}, which is no plain file name.", fix="Do not use it.")
            if not (folder / name).is_file():
                raise ModelFileError(f"{index} names {name}, which is not there.", fix="Download the missing file.")
        return names
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if "model.safetensors" in found:
        return ["model.safetensors"]
    if not found:
        raise ModelFileError(
            f"{folder} has no safetensors files.",
            fix="Convert the weights to safetensors, or use --load-format dummy for random ones.",
        )
    return found
