"""Damaged and hostile model files: a ModelFileError that says what is wrong, quickly, and nothing else."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ConfigError, ModelFileError
from octavo.weights.checkpoint import open_checkpoint
from octavo.weights.gguf import GGUFFile
from octavo.weights.gguf_arch import hf_config
from octavo.weights.gguf_dequant import dequantize
from octavo.weights.safetensors import SafetensorsFile, SafetensorsSource
from tests.patience import BUSY
from tests.tiny_models import make_tiny_gguf, make_tiny_llama


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_tiny_gguf(tmp_path_factory.mktemp("g") / "tiny.gguf").read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def read_everything(path: Path) -> None:
    with GGUFFile(path) as file:
        for key in file.metadata:
            file.metadata[key]
        config = hf_config(file)
        json.dumps({key: str(value) for key, value in config.items()})
        for name in file.tensors:
            dequantize(file, name)


HEADER = 2400  # of the tiny file: metadata and tensor entries


@settings(max_examples=250)
@given(data=st.data())
@pytest.mark.security("A9")
def test_changed_bytes_never_cause_anything_but_a_clear_error(gguf_bytes: bytes, scratch: Path, data: Any) -> None:
    damaged = bytearray(gguf_bytes)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, HEADER))
        patch = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.just(b"\xff" * 8), st.just(b"\0" * 8)))
        damaged[at : at + len(patch)] = patch
    path = scratch / "damaged.gguf"
    path.write_bytes(damaged)
    start = time.perf_counter()
    try:
        read_everything(path)
    except ModelFileError as error:
        assert error.fix
    assert time.perf_counter() - start < 5 * BUSY


@settings(max_examples=60)
@given(share=st.floats(0, 0.999))
@pytest.mark.security("A9")
def test_truncated_files_are_refused(gguf_bytes: bytes, scratch: Path, share: float) -> None:
    path = scratch / "short.gguf"
    path.write_bytes(gguf_bytes[: int(len(gguf_bytes) * share)])
    with pytest.raises(ModelFileError):
        read_everything(path)


def gguf_with(metadata: bytes, count: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, count) + metadata


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "cannot be read"),
        (b"GGML" + b"\0" * 60, "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<I", 9) + b"\0" * 40, "version is 9"),
        (b"GGUF" + struct.pack(">I", 3) + b"\0" * 40, "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0) + b"\0" * 40, "number of tensors"),
        (gguf_with(struct.pack("<Q", 1 << 62), 1), "the length of a metadata key"),
        (gguf_with(text("a") + struct.pack("<I", 99), 1), "unknown type 99"),
        (gguf_with(text("a") + struct.pack("<IIQ", 9, 8, 1 << 60), 1), "the length of 'a'"),
        (gguf_with(text("a") + struct.pack("<IIQ", 9, 9, 1), 1), "unsupported type 9"),
        (gguf_with(text("a") + struct.pack("<IIQ", 9, 8, 1 << 20), 1), "ends inside 'a'"),
        (gguf_with((text("a") + struct.pack("<IB", 0, 1)) * 2, 2), "there twice"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=named):
        GGUFFile(path)


def safetensors(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(shape: list[Any], offsets: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"1234", "shorter than a header"),
        (struct.pack("<Q", 1 << 60), "claims"),
        (safetensors(b"{nonsense"), "not JSON"),
        (safetensors(b"[" * 100_000), "not JSON"),
        (safetensors([]), "no JSON object"),
        (safetensors({"a": 5}), "no object"),
        (safetensors({"a": entry([2], [0, 8], "F99")}, b"\0" * 8), "unknown type 'F99'"),
        (safetensors({"a": entry([2], [0, 8])}, b"\0" * 4), "does not lie inside"),
        (safetensors({"a": entry([3], [0, 8])}, b"\0" * 8), "does not lie inside"),
        (safetensors({"a": entry([-2], [0, 8])}, b"\0" * 8), "malformed"),
        (safetensors({"a": entry([2], [8, 0])}, b"\0" * 8), "does not lie inside"),
        (safetensors({"a": entry([2], [0])}, b"\0" * 8), "malformed"),
        (safetensors({"a": entry([True], [0, 4])}, b"\0" * 8), "malformed"),
        (safetensors({"a": entry([2], [0, 8]), "b": entry([2], [4, 12])}, b"\0" * 12), "overlap"),
    ],
)
def test_safetensors_headers_are_checked(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=named):
        SafetensorsFile(path)


@settings(max_examples=200)
@given(data=st.data())
@pytest.mark.security("A9")
def test_changed_safetensors_never_cause_anything_but_a_clear_error(scratch: Path, data: Any) -> None:
    good = safetensors({"a": entry([2, 3], [0, 24]), "b": entry([4], [24, 28], "I8")}, b"\1" * 28)
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, 130))] = data.draw(st.integers(0, 255))
    path = scratch / "model.safetensors"
    path.write_bytes(damaged)
    try:
        file = SafetensorsFile(path)
        for name in file.entries:
            file.tensor(name).sum()
    except ModelFileError as error:
        assert error.fix


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a\\b", "..", "missing.safetensors", 5])
def test_an_index_names_plain_files_that_are_there(tmp_path: Path, name: Any) -> None:
    folder = make_tiny_llama(tmp_path / "m", shards=2)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelFileError):
        SafetensorsSource(folder)


def test_shards_that_repeat_or_lack_a_tensor_are_refused(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "m", shards=2)
    source = SafetensorsSource(folder)
    with pytest.raises(ModelFileError, match="has no tensor 'nothing'"):
        source.get("nothing")
    with pytest.raises(ModelFileError, match="has shape"):
        source.get("model.norm.weight", (3,))
    first, second = sorted(folder.glob("*.safetensors"))
    second.write_bytes(first.read_bytes())
    with pytest.raises(ModelFileError, match=r"is in .* and in"):
        SafetensorsSource(folder)


@pytest.mark.parametrize("content", ["[]", "{", '{"a": ' * 100_000, "\x00"])
def test_a_config_that_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    folder = make_tiny_llama(tmp_path / "m")
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelFileError, match=r"config\.json"):
        open_checkpoint(folder)


def test_the_load_format_must_fit(tmp_path: Path) -> None:
    folder, file = make_tiny_llama(tmp_path / "m"), make_tiny_gguf(tmp_path / "a.gguf")
    with pytest.raises(ConfigError, match="no GGUF"):
        open_checkpoint(folder, "gguf")
    with pytest.raises(ConfigError, match="does not fit"):
        open_checkpoint(file, "safetensors")
    make_tiny_gguf(tmp_path / "b.gguf")
    with pytest.raises(ConfigError, match="2 GGUF files"):
        open_checkpoint(tmp_path)
