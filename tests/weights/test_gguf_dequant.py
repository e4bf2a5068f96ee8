"""Every block format against the `gguf` package's own dequantization."""

from __future__ import annotations

import warnings
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch

from octavo.quant import int4
from octavo.weights import gguf_dequant
from octavo.weights.gguf import BLOCKS, GGUFFile
from octavo.weights.gguf_dequant import DEQUANTIZE, dequantize, four_bit
from tests.weights.gguf_writing import write_gguf

HALVES = {  # where a block has float16 numbers
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}  # fmt: skip
TYPE_IDS = {name: type_id for type_id, (name, _, _) in BLOCKS.items()}


def random_blocks(name: str, count: int, scale: float = 1.0) -> npt.NDArray[np.uint8]:
    """Random bits under scales that a model could have, of both signs."""
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 256, (count, BLOCKS[TYPE_IDS[name]][2]), np.uint8)
    for at in HALVES[name]:
        halves = (generator.standard_normal((count, 1)) * scale).astype(np.float16)
        blocks[:, at : at + 2] = halves.view(np.uint8)
    return blocks


def oracle(name: str, blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    with np.errstate(all="ignore"):
        found = gguf.quants.dequantize(blocks.reshape(-1), gguf.GGMLQuantizationType[name])
    return np.asarray(found, np.float32).reshape(len(blocks), -1)


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 100.0])
@pytest.mark.parametrize("name", sorted(DEQUANTIZE))
def test_equals_the_oracle_to_the_last_bit(name: str, scale: float) -> None:
    blocks = random_blocks(name, 300, scale)
    expected = oracle(name, blocks)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(DEQUANTIZE[name](blocks), expected)


@pytest.mark.parametrize("name", sorted(DEQUANTIZE))
def test_damaged_scales_give_what_the_oracle_gives_and_no_warning(tmp_path: Path, name: str) -> None:
    blocks = np.random.default_rng(1).integers(0, 256, (64, BLOCKS[TYPE_IDS[name]][2]), np.uint8)
    for row, bits in enumerate([0x7C00, 0xFC00, 0x7E00, 0x7D01]):  # ±infinity, quiet and signalling NaN
        for at in HALVES[name]:
            blocks[row, at : at + 2] = np.array([bits], np.uint16).view(np.uint8)
    expected = oracle(name, blocks)
    path = write_gguf(tmp_path / "x.gguf", {}, {"t": ((64, expected.shape[1]), TYPE_IDS[name], blocks.tobytes())})
    with warnings.catch_warnings(), GGUFFile(path) as file:
        warnings.simplefilter("error")
        ours = dequantize(file, "t").numpy()
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("slab", [1, 256, 3 * 256, 1 << 22])
@pytest.mark.parametrize("name", ["Q4_1", "Q6_K"])
def test_slabs_and_rows_are_parts_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, slab: int
) -> None:
    per_row = 512 // BLOCKS[TYPE_IDS[name]][1]
    blocks = random_blocks(name, 7 * per_row)
    expected = torch.from_numpy(oracle(name, blocks).reshape(7, 512))
    path = write_gguf(tmp_path / "x.gguf", {}, {"t": ((7, 512), TYPE_IDS[name], blocks.tobytes())})
    monkeypatch.setattr(gguf_dequant, "_SLAB_ELEMENTS", slab)
    with GGUFFile(path) as file:
        assert torch.equal(dequantize(file, "t"), expected)
        for rows in (slice(2, 5), slice(0, 1), slice(-2, None), slice(3, 100), slice(5, 3)):
            assert torch.equal(dequantize(file, "t", rows), expected[rows])


@pytest.mark.parametrize(("name", "tolerance"), [("Q4_0", 0), ("Q4_1", 2e-7), ("Q4_K", 1e-3)])
def test_blocks_of_four_bits_are_the_same_weights(tmp_path: Path, name: str, tolerance: float) -> None:
    """Exact but for the last bit of a fused sum; Q4_K's products of two factors are rounded to float16 (2^-11)."""
    blocks = random_blocks(name, 6 * 512 // BLOCKS[TYPE_IDS[name]][1], 1e-2)
    path = write_gguf(tmp_path / "x.gguf", {}, {"t": ((6, 512), TYPE_IDS[name], blocks.tobytes())})
    with GGUFFile(path) as file:
        found, expected = four_bit(file, "t"), dequantize(file, "t").view(6, 16, 32)
    assert found is not None
    assert found.q.dtype == torch.uint8 and found.q.shape == (6, 512) and int(found.q.max()) <= 15
    assert found.step.dtype == found.low.dtype == torch.float16 and found.step.shape == found.low.shape == (6, 16)
    ours = int4.dequantize(found).view(6, 16, 32)
    reach = 15 * found.step.float().abs() + found.low.float().abs()  # what the rounded factors can add up to
    assert ((ours - expected).abs() <= tolerance * reach[:, :, None]).all()
    assert int(found.q.float().var(dim=1).count_nonzero()) == 6  # random bits came through


@pytest.mark.parametrize("name", sorted({*DEQUANTIZE} - {"Q4_0", "Q4_1", "Q4_K"}))
def test_other_blocks_have_no_four_bits(tmp_path: Path, name: str) -> None:
    blocks = random_blocks(name, 512 // BLOCKS[TYPE_IDS[name]][1])
    path = write_gguf(tmp_path / "x.gguf", {}, {"t": ((1, 512), TYPE_IDS[name], blocks.tobytes())})
    with GGUFFile(path) as file:
        assert four_bit(file, "t") is None


def test_only_matrices_have_blocks_of_four_bits(tmp_path: Path) -> None:
    blocks = random_blocks("Q4_1", 4)
    path = write_gguf(tmp_path / "x.gguf", {}, {"t": ((128,), TYPE_IDS["Q4_1"], blocks.tobytes())})
    with GGUFFile(path) as file:
        assert four_bit(file, "t") is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_plain_types_come_as_they_are_stored(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    type_id = TYPE_IDS[{torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]]
    raw = values.view(torch.uint8).numpy().tobytes()
    with GGUFFile(write_gguf(tmp_path / "x.gguf", {}, {"t": ((2, 3, 5), type_id, raw)})) as file:
        ours = dequantize(file, "t")
        assert ours.dtype == dtype
        assert torch.equal(ours, values)
        assert torch.equal(dequantize(file, "t", slice(1, 2)), values[1:2])
        ours.zero_()  # a copy: the file's pages are not written to
        assert torch.equal(dequantize(file, "t"), values)


@pytest.mark.model
def test_the_real_file_equals_the_oracle(smollm2_gguf: Path) -> None:
    with GGUFFile(smollm2_gguf) as file:
        assert len(file.tensors) == 272
        for name in ("blk.0.attn_q.weight", "blk.13.ffn_down.weight", "blk.29.ffn_up.weight", "output_norm.weight"):
            entry = file.tensors[name]
            expected = gguf.quants.dequantize(file.raw(name), gguf.GGMLQuantizationType[entry.type_name])
            assert torch.equal(dequantize(file, name), torch.from_numpy(expected.copy()).reshape(entry.shape))
        rows = dequantize(file, "token_embd.weight", slice(49000, 49152))
        raw = file.raw("token_embd.weight").reshape(49152, -1)[49000:49152]
        expected = gguf.quants.dequantize(raw.reshape(-1), gguf.GGMLQuantizationType.Q8_0)
        assert torch.equal(rows, torch.from_numpy(expected.copy()).reshape(152, 576))
