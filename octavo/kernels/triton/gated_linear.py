# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""silu(x Gᵀ) * (x Uᵀ), SwiGLU's first half (Shazeer 2020, arXiv 2002.05202), as one product with its gate.

The rows of G and U alternate in one matrix, so that a thread holds a gate and its up side by side when the sums are
done: nothing of twice the width is written, nor read again. Tiles are brought by the tensor memory accelerator. There
are as many programs as multiprocessors, each with every so many tiles, in groups of GROUP tiles of rows that share
their columns of W in the second-level cache.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo.kernels.triton import warm_up
from octavo.kernels.triton.launch import pdl_options


@triton.jit(do_not_specialize=["M", "programs"])  # one compiled kernel for any number
def gated_linear_kernel(
    x, w, bias, out, M, N, K, programs,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, BIAS: tl.constexpr,
    STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Tiles of BM rows and BN rows of W, a program's first and every `programs` after it."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    across = tl.cdiv(N, BN)
    down = tl.cdiv(M, BM)
    for tile in tl.range(tl.program_id(0), down * across, programs, flatten=True):
        first = tile // (GROUP * across) * GROUP
        high = tl.minimum(down - first, GROUP)
        at_m = first + tile % (GROUP * across) % high
        at_n = tile % (GROUP * across) // high
        acc = tl.zeros([BM, BN], tl.float32)
        for k in tl.range(0, K, BK, num_stages=STAGES):
            acc = tl.dot(x.load([at_m * BM, k]), w.load([at_n * BN, k]).T, acc)
        if BIAS:
            columns = at_n * BN + tl.arange(0, BN)
            acc += tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
        gate, up = tl.split(tl.reshape(acc, [BM, BN // 2, 2]))
        gated = gate / (1 + tl.exp(-gate)) * up
        rows = at_m * BM + tl.arange(0, BM)
        pairs = at_n * (BN // 2) + tl.arange(0, BN // 2)
        here = out + rows.to(tl.int64)[:, None] * (N // 2) + pairs[None, :]
        tl.store(here, gated.to(out.dtype.element_ty), mask=(rows < M)[:, None] & (pairs < N // 2)[None, :])


@dataclass(frozen=True, slots=True)
class GatedTile:
    """Tile sizes of one launch. `cost`: µs a tile takes on an H100, for 4,096 columns."""

    rows: int
    outputs: int
    columns: int
    stages: int
    warps: int
    cost: float

    @property
    def group(self) -> int:
        return 1024 // self.rows


TILES = (
    GatedTile(128, 256, 64, 3, 8, 48.5),
    GatedTile(64, 256, 64, 4, 8, 28.0),
    GatedTile(128, 128, 64, 5, 8, 26.2),
)
FEW_ROWS = GatedTile(64, 128, 128, 4, 4, 0.0)  # where reading W is all
EVERY_TILE = (*TILES, FEW_ROWS)


def choose_tile(rows: int, outputs: int, multiprocessors: int) -> GatedTile:
    """Tiles come in waves of one a multiprocessor: the least waves times cost, as measured in
    `benchmarks/results/gpu-fused-h100.json`."""
    if rows <= 64:
        return FEW_ROWS
    if rows <= 128:
        return TILES[2]

    def time(tile: GatedTile) -> float:
        tiles = triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.outputs)
        return float(triton.cdiv(tiles, multiprocessors) * tile.cost)

    return min(TILES, key=time)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def gated_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    tile: GatedTile | None = None,
    pdl: bool = False,
) -> torch.Tensor:
    """x [M, K], weight [2 I, K] with rows gate, up, gate, up..., bias [2 I] likewise → silu(gate) * up, [M, I].

    x and weight are contiguous, of one 16-bit type, and K is a multiple of 8, which the accelerator asks for.
    """
    rows, columns = x.shape
    outputs = weight.shape[0]
    out = torch.empty(rows, outputs // 2, dtype=x.dtype, device=x.device)
    if rows == 0:
        return out
    processors = _multiprocessors(x.device)
    chosen = tile or choose_tile(rows, outputs, processors)
    for use in EVERY_TILE if warm_up.wants_every_variant() else (chosen,):
        programs = min(processors, triton.cdiv(rows, use.rows) * triton.cdiv(outputs, use.outputs))
        gated_linear_kernel[(programs,)](
            TensorDescriptor.from_tensor(x, [use.rows, use.columns]),
            TensorDescriptor.from_tensor(weight, [use.outputs, use.columns]),
            bias, out, rows, outputs, columns, programs,
            BM=use.rows, BN=use.outputs, BK=use.columns, GROUP=use.group, BIAS=bias is not None, STAGES=use.stages,
            PDL=pdl, num_warps=use.warps, **pdl_options(pdl),
        )  # fmt: skip
    return out
