# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""y = x Wᵀ + b in which a row's result does not depend, to the bit, on how many other rows there are.

One tile shape and one order of the sums over K serve every number of rows, and the compiled kernel is the same one, so
what happens to a row is the same sequence of instructions wherever it stands. (cuBLAS chooses other tiles and splits
of K for other numbers of rows; see He et al. 2025, "Defeating Nondeterminism in LLM Inference".) Programs persist and
take tiles in turn: those of one band of W, for all rows, before those of the next, so that W is read about once.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["M"])  # one compiled kernel for any number, which is the point
def invariant_linear_kernel(
    x, w, bias, y, x_scales, w_scales, M, N, K,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BAND: tl.constexpr, EVEN_K: tl.constexpr,
    BIAS: tl.constexpr, SCALED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Tiles of BM rows of x by BN rows of W; with SCALED both are e4m3 with a scale for each row."""
    row_tiles = (M + BM - 1) // BM
    band_tiles = row_tiles * BAND
    tiles = row_tiles * ((N + BN - 1) // BN)
    k = tl.arange(0, BK)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        band = tile // band_tiles
        within = tile - band * band_tiles
        width = tl.minimum((N + BN - 1) // BN - band * BAND, BAND)
        m = within // width * BM + tl.arange(0, BM)
        n = (band * BAND + within % width) * BN + tl.arange(0, BN)
        inputs = x + m.to(tl.int64)[:, None] * K + k[None, :]
        weights = w + n.to(tl.int64)[None, :] * K + k[:, None]
        acc = tl.zeros([BM, BN], tl.float32)
        for at in tl.range(0, K, BK, num_stages=STAGES):
            if EVEN_K:
                a = tl.load(inputs + at, mask=(m < M)[:, None], other=0.0)
                b = tl.load(weights + at, mask=(n < N)[None, :], other=0.0)
            else:
                inside = at + k < K
                a = tl.load(inputs + at, mask=(m < M)[:, None] & inside[None, :], other=0.0)
                b = tl.load(weights + at, mask=(n < N)[None, :] & inside[:, None], other=0.0)
            acc = tl.dot(a, b, acc)
        if SCALED:
            left = tl.load(x_scales + m, mask=m < M, other=0.0)
            right = tl.load(w_scales + n, mask=n < N, other=0.0)
            acc = acc * left[:, None] * right[None, :]
        if BIAS:
            acc += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
        out = y + m.to(tl.int64)[:, None] * N + n[None, :]
        tl.store(out, acc.to(y.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


@dataclass(frozen=True, slots=True)
class InvariantTile:
    """The tile shape; an engine keeps one for its life. `band`: tiles of W that share a pass over the rows."""

    block_m: int = 128
    block_n: int = 64
    block_k: int = 64
    stages: int = 4
    warps: int = 4
    band: int = 16


_STAGES = 2 if torch.version.hip is not None else 4  # CDNA has 64 KiB of shared memory
TILE = InvariantTile(stages=_STAGES)
TILE_FP8 = InvariantTile(block_k=128, stages=_STAGES)


def invariant_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    x_scales: torch.Tensor | None = None,
    w_scales: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    tile: InvariantTile | None = None,
) -> torch.Tensor:
    """x [M, K], weight [N, K], bias [N] → [M, N], of `dtype` or x's own type; sums in float32.

    Args:
        x_scales, w_scales: float32 [M, 1] and [N], with float8_e4m3fn x and weight: value = stored * scale.
        dtype: needed with scales.
    """
    rows, columns = x.shape
    outputs = weight.shape[0]
    y = torch.empty(rows, outputs, dtype=dtype or x.dtype, device=x.device)
    if rows == 0:
        return y
    use = tile or (TILE if x_scales is None else TILE_FP8)
    tiles = triton.cdiv(rows, use.block_m) * triton.cdiv(outputs, use.block_n)
    invariant_linear_kernel[(min(tiles, _programs(x.device)),)](
        x.contiguous(), weight, bias, y, x_scales, w_scales, rows, outputs, columns,
        BM=use.block_m, BN=use.block_n, BK=use.block_k, BAND=use.band, EVEN_K=columns % use.block_k == 0,
        BIAS=bias is not None, SCALED=x_scales is not None, STAGES=use.stages, num_warps=use.warps,
    )  # fmt: skip
    return y


@functools.cache
def _programs(device: torch.device) -> int:
    """Two a multiprocessor; how many there are changes who computes a tile, and nothing else."""
    if device.type != "cuda":
        return 8
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count
