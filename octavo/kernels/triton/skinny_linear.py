# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""y = x Wᵀ + b for a few rows of x: reading W is all the time it takes.

A program streams BN rows of W (or, with SPLIT > 1, a share of their columns) through shared memory. Before it waits
for the kernel that makes x (programmatic dependent launch) it asks for its first weights, so that memory is busy while
the small kernels between two products run. Shares are added in their order by the program that arrives last, so
results do not depend on timing, nor on the number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.launch import pdl_options

MAX_ROWS = 16


@triton.jit
def prefetch_rows(w, first_row, first_column, BN: tl.constexpr, K, BYTES: tl.constexpr, ELEMENT: tl.constexpr):
    """Bring the first BYTES of each of BN rows into the second-level cache."""
    LINES: tl.constexpr = BYTES // 128
    rows = first_row + tl.arange(0, BN)
    at = rows.to(tl.int64)[:, None] * K + first_column + (tl.arange(0, LINES) * (128 // ELEMENT))[None, :]
    addresses = (w + at).to(tl.int64, bitcast=True)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [addresses], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit(do_not_specialize=["M"])  # one compiled kernel for any number
def skinny_linear_kernel(
    x, w, bias, y, partial, arrivals, M, N, K, share, stride_x,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr, EVEN: tl.constexpr,
    BIAS: tl.constexpr, GATE: tl.constexpr, ADD: tl.constexpr, STAGES: tl.constexpr, PREFETCH: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """BN outputs of all rows, over columns [part * share, (part + 1) * share) of W."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    tile, part = tl.program_id(0), tl.program_id(1)
    n = tile * BN + tl.arange(0, BN)
    m = tl.arange(0, BM)
    k = tl.arange(0, BK)
    first = part * share
    if PREFETCH > 0:
        prefetch_rows(w, tile * BN, first, BN, K, PREFETCH, 2)
    if PDL:
        tl.extra.cuda.gdc_wait()
    weights = w + n.to(tl.int64)[:, None] * K + k[None, :]
    inputs = x + m[None, :] * stride_x + k[:, None]
    acc = tl.zeros([BN, BM], tl.float32)
    for at in tl.range(first, tl.minimum(first + share, K), BK, num_stages=STAGES):
        if EVEN:
            a = tl.load(weights + at, eviction_policy="evict_first")
            b = tl.load(inputs + at, mask=m[None, :] < M, other=0.0)
        else:
            inside = at + k < K
            a = tl.load(weights + at, mask=(n < N)[:, None] & inside[None, :], other=0.0)
            b = tl.load(inputs + at, mask=(m < M)[None, :] & inside[:, None], other=0.0)
        acc = tl.dot(a, b, acc)
    if SPLIT > 1:
        here = (tile * SPLIT * BN + tl.arange(0, BN))[:, None] * BM + m[None, :]
        tl.store(partial + here + part * (BN * BM), acc)
        tl.debug_barrier()
        arrived = tl.atomic_add(arrivals + tile, 1, sem="acq_rel", scope="gpu")
        if arrived != SPLIT - 1:
            return
        tl.store(arrivals + tile, 0)
        acc = tl.zeros([BN, BM], tl.float32)
        for i in tl.static_range(SPLIT):
            acc += tl.load(partial + here + i * (BN * BM), cache_modifier=".cg")
    if BIAS:
        acc += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
    if GATE:
        gate, up = tl.split(tl.permute(tl.reshape(acc, [BN // 2, 2, BM]), (0, 2, 1)))
        acc = gate / (1 + tl.exp(-gate)) * up
        n = tile * (BN // 2) + tl.arange(0, BN // 2)
        N = N // 2
    out = y + m.to(tl.int64)[None, :] * N + n[:, None]
    mask = (m < M)[None, :] & (n < N)[:, None]
    if ADD:
        acc += tl.load(out, mask=mask, other=0.0).to(tl.float32)
    tl.store(out, acc.to(y.dtype.element_ty), mask=mask)


@dataclass(frozen=True, slots=True)
class Tuning:
    """Tile sizes of one launch. `prefetch`: bytes of each row to ask for before waiting, a power of 2, or 0."""

    block_n: int = 16
    block_k: int = 256
    split: int = 1
    stages: int = 4
    warps: int = 4
    prefetch: int = 512


class SplitSpace:
    """Partial sums and counters of launches with a split; one stream at a time may use an instance."""

    def __init__(self, device: torch.device, elements: int = 1 << 20, tiles: int = 1 << 14):
        self.partial = torch.empty(elements, dtype=torch.float32, device=device)
        self.arrivals = torch.zeros(tiles, dtype=torch.int32, device=device)

    def holds(self, tiles: int, tuning: Tuning) -> bool:
        """Whether a launch's partial sums fit."""
        needed = tiles * tuning.split * tuning.block_n * MAX_ROWS
        return needed <= self.partial.numel() and tiles <= self.arrivals.numel()


def skinny_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    tuning: Tuning | None = None,
    space: SplitSpace | None = None,
    gated: bool = False,
    onto: torch.Tensor | None = None,
    pdl: bool = False,
) -> torch.Tensor:
    """x [M, K], M at most 16 (rows may be strided), weight [N, K], bias [N] → [M, N] of x's type.

    Args:
        space: needed where `tuning.split` is above 1.
        gated: W's rows are gate, up, gate, up...; the result is silu(gate) * up, [M, N / 2].
        onto: [M, N], contiguous: the sum of it and the product overwrites it, and is returned.

    Raises:
        ValueError: there are more rows, or no space for the split.
    """
    rows, columns = x.shape
    outputs = weight.shape[0]
    use = tuning or Tuning()
    tiles = triton.cdiv(outputs, use.block_n)
    if rows > MAX_ROWS:
        raise ValueError(f"{rows} rows, at most {MAX_ROWS}")
    if use.split > 1 and (space is None or not space.holds(tiles, use)):
        raise ValueError(f"a split in {use.split} of {outputs} outputs needs more space")
    y = onto
    if y is None:
        y = torch.empty(rows, outputs // 2 if gated else outputs, dtype=x.dtype, device=x.device)
    if rows == 0:
        return y
    blocks = triton.cdiv(columns, use.block_k)
    share = triton.cdiv(blocks, use.split) * use.block_k
    even = outputs % use.block_n == 0 and columns % use.block_k == 0
    prefetch = use.prefetch if even and pdl and use.prefetch <= 2 * share else 0
    skinny_linear_kernel[(tiles, use.split)](
        x, weight, bias, y, None if space is None else space.partial, None if space is None else space.arrivals,
        rows, outputs, columns, share, x.stride(0),
        BM=MAX_ROWS, BN=use.block_n, BK=use.block_k, SPLIT=use.split, EVEN=even, BIAS=bias is not None,
        GATE=gated, ADD=onto is not None, STAGES=use.stages, PREFETCH=prefetch, PDL=pdl,
        num_warps=use.warps, **pdl_options(pdl),
    )  # fmt: skip
    return y
