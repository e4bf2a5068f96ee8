"""From GGUF's block formats to float32.

Each function takes blocks, uint8 [n, bytes of a block], and returns float32 [n, elements of a block]. Layouts are those
of ggml's `block_*` structs; d is a block's scale, m its minimum, q its small integers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from octavo.weights.gguf import BLOCKS, GGUFFile
from octavo.weights.source import FourBit

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_SLAB_ELEMENTS = 1 << 18  # its temporaries fit a core's cache: a quarter faster than 1 << 22


def dequantize(file: GGUFFile, name: str, rows: slice | None = None) -> torch.Tensor:
    """A tensor (or some of its first axis) as a torch tensor: F32, F16, BF16 as stored, quantized types as float32."""
    tensor = file.tensors[name]
    type_name, block, size = BLOCKS[tensor.type_id]
    data, shape = file.raw(name), tensor.shape
    if rows is not None:
        start, stop, _ = rows.indices(shape[0])
        row_bytes = tensor.nbytes // shape[0]
        stop = max(start, stop)
        data, shape = data[start * row_bytes : stop * row_bytes], (stop - start, *shape[1:])
    if type_name in _STORED:
        return torch.from_numpy(data.copy()).view(_STORED[type_name]).view(shape)
    blocks = data.reshape(-1, size)
    out = np.empty((len(blocks), block), np.float32)
    step = max(1, _SLAB_ELEMENTS // block)
    with np.errstate(all="ignore"):  # a damaged scale may be infinite or NaN: so is the weight then
        for at in range(0, len(blocks), step):
            out[at : at + step] = DEQUANTIZE[type_name](blocks[at : at + step])
    return torch.from_numpy(out).view(shape)


def four_bit(file: GGUFFile, name: str) -> FourBit | None:
    """A matrix of type Q4_0, Q4_1 or Q4_K as its blocks are (Q4_K's factors rounded to float16), else None."""
    tensor = file.tensors[name]
    type_name, _, size = BLOCKS[tensor.type_id]
    if type_name not in _FOUR_BIT or len(tensor.shape) != 2:
        return None
    rows, columns = tensor.shape
    with np.errstate(all="ignore"):
        q, step, low = _FOUR_BIT[type_name](file.raw(name).reshape(-1, size))
        halves = [np.ascontiguousarray(x, np.float16).reshape(rows, columns // 32) for x in (step, low)]
    return FourBit(torch.from_numpy(q.reshape(rows, columns)), *(torch.from_numpy(x) for x in halves))


_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _half(data: Bytes) -> Floats:
    """[n, 2k] bytes → [n, k] float32, from float16."""
    return np.ascontiguousarray(data).view(np.float16).astype(np.float32)


def _nibbles(data: Bytes) -> Bytes:
    """[n, k] → [n, 2k]: all low halves, then all high halves."""
    return np.concatenate([data & 15, data >> 4], axis=1)


def _fifth_bits(data: Bytes) -> Bytes:
    """[n, 4] → [n, 32]: bit i of the little-endian word, shifted to the place of 16."""
    return np.unpackbits(data, axis=1, bitorder="little") << np.uint8(4)


def q4_0(blocks: Bytes) -> Floats:
    """d (float16), 16 bytes of nibbles: d (q - 8)."""
    return _half(blocks[:, :2]) * (_nibbles(blocks[:, 2:]).astype(np.int8) - 8)


def q4_1(blocks: Bytes) -> Floats:
    """d, m (float16), 16 bytes of nibbles: d q + m."""
    return _half(blocks[:, :2]) * _nibbles(blocks[:, 4:]) + _half(blocks[:, 2:4])


def q5_0(blocks: Bytes) -> Floats:
    """d (float16), the 32 fifth bits, 16 bytes of nibbles: d (q - 16)."""
    q = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return _half(blocks[:, :2]) * (q.astype(np.int8) - 16)


def q5_1(blocks: Bytes) -> Floats:
    """d, m (float16), the 32 fifth bits, 16 bytes of nibbles: d q + m."""
    q = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return _half(blocks[:, :2]) * q + _half(blocks[:, 2:4])


def q8_0(blocks: Bytes) -> Floats:
    """d (float16), 32 signed bytes: d q."""
    return _half(blocks[:, :2]) * blocks[:, 2:].view(np.int8)


def _crumbs(data: Bytes) -> Bytes:
    """[n, 64] → [n, 256] values of 2 bits: of each 32 bytes, the lowest pairs first, then the next higher."""
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    return ((data.reshape(-1, 2, 1, 32) >> shifts) & np.uint8(3)).reshape(-1, 256)


def _groups(q: npt.NDArray[np.generic], scale: Floats) -> Floats:
    """q [n, 256] times scale [n, g], each scale for 256 / g neighbours."""
    n, g = scale.shape
    return (q.reshape(n, g, 256 // g).astype(np.float32) * scale[:, :, None]).reshape(n, 256)


def q2_k(blocks: Bytes) -> Floats:
    """16 bytes of scale and minimum (a nibble each), 64 bytes of 2-bit q, d, dmin: d scale q - dmin minimum."""
    scales, q = blocks[:, :16], _crumbs(blocks[:, 16:80])
    d, dmin = _half(blocks[:, 80:82]), _half(blocks[:, 82:84])
    minima: Floats = np.repeat(dmin * (scales >> 4), 16, axis=1)
    return _groups(q, d * (scales & 15)) - minima


def q3_k(blocks: Bytes) -> Floats:
    """32 bytes of inverted third bits, 64 bytes of 2-bit q, 12 bytes of 16 6-bit scales, d: d (scale - 32) q."""
    high, low, packed, d = blocks[:, :32], _crumbs(blocks[:, 32:96]), blocks[:, 96:108], _half(blocks[:, 108:110])
    bits = (high[:, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    q = low.astype(np.int8) - ((bits.reshape(-1, 256) ^ 1) << 2).astype(np.int8)
    low4 = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    shifts = np.repeat(np.array([0, 2, 4, 6], np.uint8), 4)
    high2 = (np.tile(packed[:, 8:12], 4) >> shifts) & 3
    scales = (low4 | (high2 << 4)).astype(np.int8) - 32
    return _groups(q, d * scales)


def _six_bit_pairs(packed: Bytes) -> tuple[Bytes, Bytes]:
    """The 12 bytes of Q4_K and Q5_K → 8 scales and 8 minima of 6 bits."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return scales, minima


def _nibbles_by_32(data: Bytes) -> Bytes:
    """[n, 128] → [n, 256]: of each 32 bytes, the low halves, then the high halves."""
    parts = data.reshape(-1, 4, 1, 32)
    return np.concatenate([parts & 15, parts >> 4], axis=2).reshape(-1, 256)


def q4_k(blocks: Bytes) -> Floats:
    """d, dmin, 12 bytes of 8 6-bit scales and minima, 128 bytes of nibbles: d scale q - dmin minimum."""
    q, step, low = _q4_k_parts(blocks)
    return _groups(q, step) + np.repeat(low, 32, axis=1)


def _q4_k_parts(blocks: Bytes) -> tuple[Bytes, Floats, Floats]:
    d, dmin = _half(blocks[:, :2]), _half(blocks[:, 2:4])
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    return _nibbles_by_32(blocks[:, 16:]), d * scales, -(dmin * minima)


def q5_k(blocks: Bytes) -> Floats:
    """As Q4_K, with 32 bytes of fifth bits before the nibbles."""
    d, dmin = _half(blocks[:, :2]), _half(blocks[:, 2:4])
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    high = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    q = _nibbles_by_32(blocks[:, 48:]) | (high.reshape(-1, 256) << 4)
    return _groups(q, d * scales) - np.repeat(dmin * minima, 32, axis=1)


def q6_k(blocks: Bytes) -> Floats:
    """128 bytes of low nibbles, 64 bytes of high pairs, 16 signed scales, d: d scale (q - 32)."""
    low, high, scales = blocks[:, :128], blocks[:, 128:192], blocks[:, 192:208].view(np.int8)
    low_parts = low.reshape(-1, 2, 1, 64)
    low4 = np.concatenate([low_parts & 15, low_parts >> 4], axis=2).reshape(-1, 256)
    q = (low4 | (_crumbs(high) << 4)).astype(np.int8) - 32
    return _groups(q, _half(blocks[:, 208:210]) * scales)


DEQUANTIZE: dict[str, Callable[[Bytes], Floats]] = {
    "Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1, "Q8_0": q8_0,
    "Q2_K": q2_k, "Q3_K": q3_k, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k,
}  # fmt: skip

_FOUR_BIT: dict[str, Callable[[Bytes], tuple[Bytes, Floats, Floats]]] = {
    "Q4_0": lambda blocks: (_nibbles(blocks[:, 2:]), _half(blocks[:, :2]), -8 * _half(blocks[:, :2])),
    "Q4_1": lambda blocks: (_nibbles(blocks[:, 4:]), _half(blocks[:, :2]), _half(blocks[:, 2:4])),
    "Q4_K": _q4_k_parts,
}
"""Type → q [n, elements], step and low [n, elements / 32]; w = step q + low."""
