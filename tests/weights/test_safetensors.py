"""Safetensors against the safetensors library, beyond what `test_damage` refuses: types, odd places, shards, files."""

from __future__ import annotations

import gc
import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from octavo.errors import ModelFileError
from octavo.weights.checkpoint import open_checkpoint
from octavo.weights.safetensors import _DTYPES, SafetensorsFile, SafetensorsSource
from tests.tiny_models import make_tiny_llama


def raw_file(path: Path, header: dict[str, Any], data: bytes, padding: int = 0) -> Path:
    raw = json.dumps(header).encode() + b" " * padding
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


@pytest.mark.parametrize("dtype", sorted(_DTYPES))
def test_every_type_comes_as_it_was_saved(tmp_path: Path, dtype: str) -> None:
    torch_dtype = _DTYPES[dtype]
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 2, (3, 5), generator=generator).to(torch_dtype)
    save_file({"a": values, "scalar": values[0, 0].clone(), "empty": values[:0].clone()}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.entries["a"][0] == torch_dtype
    for name, expected in {"a": values, "scalar": values[0, 0], "empty": values[:0]}.items():
        found = file.tensor(name)
        assert (found.dtype, found.shape) == (torch_dtype, expected.shape)
        assert torch.equal(found.float(), expected.float())


@pytest.mark.parametrize("padding", range(8))
def test_a_header_of_any_length_gives_aligned_numbers(tmp_path: Path, padding: int) -> None:
    header = {"a": {"dtype": "F64", "shape": [3], "data_offsets": [0, 24]}}
    file = SafetensorsFile(raw_file(tmp_path / "x", header, struct.pack("<3d", 1.5, -2, 3), padding))
    tensor = file.tensor("a")
    assert tensor.tolist() == [1.5, -2, 3]
    assert tensor.data_ptr() % 8 == 0


def test_writing_to_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(100)}, path)
    before = path.read_bytes()
    SafetensorsFile(path).tensor("a").zero_()
    gc.collect()
    assert path.read_bytes() == before


def test_tensors_outlive_their_source(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "m", shards=2)
    source = SafetensorsSource(folder)
    tensor = source.get("model.norm.weight")
    expected = tensor.clone()
    source.close()
    del source
    gc.collect()
    assert torch.equal(tensor, expected)


HUGE = 10**4000
IMPOSSIBLE: list[tuple[Any, str]] = [
    ({"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}, "unknown type"),
    ({"dtype": {"a": 1}, "shape": [2], "data_offsets": [0, 8]}, "unknown type"),
    ({"dtype": None, "shape": [2], "data_offsets": [0, 8]}, "unknown type"),
    ({"shape": [2], "data_offsets": [0, 8]}, "unknown type"),
    ({"dtype": "x" * 100_000, "shape": [2], "data_offsets": [0, 8]}, "unknown type"),
    ({"dtype": "F32", "data_offsets": [0, 8]}, "malformed"),
    ({"dtype": "F32", "shape": [2]}, "malformed"),
    ({"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}, "malformed"),
    ({"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}, "malformed"),
    ({"dtype": "F32", "shape": [None], "data_offsets": [0, 8]}, "malformed"),
    ({"dtype": "F32", "shape": [2], "data_offsets": [0, HUGE]}, "malformed"),
    ({"dtype": "F32", "shape": [1] * 1000, "data_offsets": [0, 4]}, "malformed"),
    ({"dtype": "F32", "shape": [HUGE] * 3000, "data_offsets": [0, 8]}, "malformed"),
    ({"dtype": "F32", "shape": [0, 1 << 62, 1 << 62], "data_offsets": [0, 0]}, "impossible shape"),
    ({"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 8]}, "impossible shape"),
]


@pytest.mark.parametrize(("entry", "named"), IMPOSSIBLE)
def test_impossible_entries_are_refused_at_once(tmp_path: Path, entry: Any, named: str) -> None:
    path = raw_file(tmp_path / "x", {"the.tensor": entry}, bytes(8))
    start = time.perf_counter()
    with pytest.raises(ModelFileError, match=named) as caught:
        SafetensorsFile(path)
    assert time.perf_counter() - start < 10  # the product of the sizes alone would take many minutes
    assert "the.tensor" in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": 5}',
        '{"weight_map": {"a": []}}',
        '{"weight_map": {"a": 1, "b": "x"}}',
        '{"weight_map": {"a": ""}}',
        '{"weight_map": {"a": "model-00001-of-00002.safetensors\\u0000"}}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, index: str) -> None:
    folder = make_tiny_llama(tmp_path / "m", shards=2)
    (folder / "model.safetensors.index.json").write_bytes(index.encode("latin-1"))
    with pytest.raises(ModelFileError, match=r"index\.json") as caught:
        SafetensorsSource(folder)
    assert caught.value.fix


def test_files_beside_an_index_are_not_read(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "m", shards=2)
    (folder / "consolidated.safetensors").write_bytes(b"of another kind")
    assert "model.norm.weight" in SafetensorsSource(folder)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "m", shards=2)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ModelFileError, match=shard.name):
        open_checkpoint(folder)


def test_a_folder_without_weights_says_what_to_do(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelFileError, match="no safetensors files") as caught:
        open_checkpoint(folder)
    assert "dummy" in caught.value.fix
    assert "model.norm.weight" in open_checkpoint(folder, "dummy").weights
