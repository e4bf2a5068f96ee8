"""The GGUF reader on whole files: every kind of value, what it decodes when, and that it is quick and small."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

from octavo.errors import ModelFileError
from octavo.weights import gguf as module
from octavo.weights.gguf import GGUFFile
from tests.weights.gguf_writing import text, typed, write_gguf


def test_every_kind_of_value(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "llama")
    writer.add_uint8("u8", 255)
    writer.add_int8("i8", -128)
    writer.add_uint16("u16", 65535)
    writer.add_int16("i16", -32768)
    writer.add_uint32("u32", 2**32 - 1)
    writer.add_int32("i32", -(2**31))
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float32("f32", 0.1)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("words", "Grüße, 世界 🌍")
    writer.add_array("strings", ["a", "ü", "a longer one"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_array("floats", [0.5, -0.25])
    writer.add_array("truths", [True, False])
    writer.add_tensor("t", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile(tmp_path / "x.gguf") as file:
        assert dict(file.metadata) == {
            "general.architecture": "llama",
            "u8": 255,
            "i8": -128,
            "u16": 65535,
            "i16": -32768,
            "u32": 2**32 - 1,
            "i32": -(2**31),
            "u64": 2**64 - 1,
            "i64": -(2**63),
            "f32": float(np.float32(0.1)),
            "f64": 0.1,
            "yes": True,
            "words": "Grüße, 世界 🌍",
            "strings": ["a", "ü", "a longer one"],
            "numbers": [1, -2, 3],
            "floats": [0.5, -0.25],
            "truths": [True, False],
        }
        assert (file.tensors["t"].shape, file.tensors["t"].type_name) == ((2, 3), "F32")
        assert file.raw("t").view(np.float32).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_tensors_lie_at_their_alignment(tmp_path: Path, version: int, alignment: int) -> None:
    tensors = {name: ((5,), 0, struct.pack("<5f", *[value] * 5)) for value, name in enumerate("abc")}
    path = write_gguf(tmp_path / "x.gguf", {"general.alignment": alignment}, tensors, version)
    with GGUFFile(path) as file:
        assert [file.raw(name).view(np.float32)[4] for name in "abc"] == [0, 1, 2]
        assert all(entry.offset % alignment == 0 for entry in file.tensors.values())


def test_asking_whether_a_key_is_there_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "x.gguf", {"tokens": ["a", "b"], "one": 1}, {})
    with GGUFFile(path) as file:
        with monkeypatch.context() as patch:
            patch.delattr(module._Header, "array")
            assert "tokens" in file.metadata and "other" not in file.metadata
            assert sorted(file.metadata) == ["one", "tokens"] and len(file.metadata) == 2
        assert file.metadata["tokens"] == ["a", "b"]
        assert file.metadata["tokens"] is file.metadata["tokens"]  # once


def test_an_empty_array_may_end_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("none") + struct.pack("<IIQ", 9, 4, 0))
    with GGUFFile(path) as file:
        assert file.metadata["none"] == []


@pytest.mark.parametrize("value", [24, 0, 1 << 40, "32", [32], 0.5])
def test_an_impossible_alignment_is_refused(tmp_path: Path, value: object) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("general.alignment") + typed(value) + bytes(64))
    with pytest.raises(ModelFileError, match=r"general\.alignment"):
        GGUFFile(path)


@pytest.mark.parametrize(
    ("shape", "type_id", "offset", "named"),
    [
        ((1 << 30, 1 << 30, 1 << 30, 1 << 30), 0, 0, "does not lie inside"),
        ((1 << 63,), 0, 0, "impossible for F32"),
        ((0,), 0, 0, "impossible for F32"),
        ((4, 31), 8, 0, "impossible for Q8_0"),
        ((4,), 0, 1, "does not lie inside"),
        ((4,), 0, 1 << 63, "does not lie inside"),
        ((), 0, 0, "0 dimensions"),
        ((1, 1, 1, 1, 1), 0, 0, "5 dimensions"),
        ((32,), 20, 0, "quantization type IQ4_NL"),
        ((32,), 4, 0, "quantization type number 4"),
    ],
)
def test_impossible_tensors_are_named(
    tmp_path: Path, shape: tuple[int, ...], type_id: int, offset: int, named: str
) -> None:
    entry = text("the.tensor") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), type_id, offset)
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + entry + bytes(256))
    with pytest.raises(ModelFileError, match=named) as caught:
        GGUFFile(path)
    assert "the.tensor" in str(caught.value) and caught.value.fix


@pytest.mark.parametrize(
    "body",
    [
        struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 8, 1 << 24) + bytes(1 << 20),
        struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 12, 1 << 24) + bytes(1 << 20),
        struct.pack("<IQQ", 3, 0, 65536) + bytes(1 << 20),
        struct.pack("<IQQ", 3, 65536, 0) + bytes(1 << 20),
        struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 16 << 20) + bytes(1 << 20),
        struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IQ", 8, 16 << 20) + bytes(1 << 20),
    ],
)
def test_great_claims_of_a_small_file_cost_nothing(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + body)
    tracemalloc.start()
    try:
        start = time.perf_counter()
        with pytest.raises(ModelFileError):
            GGUFFile(path)
        seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    assert seconds < 2


def test_too_many_strings_are_refused_before_they_are_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ARRAY_STRINGS", 5)
    assert GGUFFile(write_gguf(tmp_path / "x.gguf", {"a": ["x"] * 3, "b": ["x"] * 2}, {})).metadata["b"] == ["x"] * 2
    with pytest.raises(ModelFileError, match="more than 5 strings"):
        GGUFFile(write_gguf(tmp_path / "x.gguf", {"a": ["x"] * 3, "b": ["x"] * 3}, {}))


def test_arrays_outlive_the_closed_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", {}, {"t": ((4,), 0, struct.pack("<4f", 1, 2, 3, 4))})
    with GGUFFile(path) as file:
        raw = file.raw("t")
    assert raw.view(np.float32).tolist() == [1, 2, 3, 4]


@pytest.mark.model
def test_the_real_header_is_read_in_a_moment(smollm2_gguf: Path) -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        with GGUFFile(smollm2_gguf) as file:
            tokens, merges = file.metadata["tokenizer.ggml.tokens"], file.metadata["tokenizer.ggml.merges"]
        times.append(time.perf_counter() - start)
    assert (len(tokens), len(merges), tokens[2]) == (49152, 48900, "<|im_end|>")
    assert min(times) < 1.0  # 0.1 s on an idle core
