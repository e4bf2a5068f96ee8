# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""log sum exp of rows, each in one order whatever else there is (torch's sums depend on the number of rows)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def row_logsumexp_kernel(x, out, size, stride_x, BLOCK: tl.constexpr):
    """One row: each of BLOCK lanes keeps its own maximum and sum, joined at the end."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    broken = tl.zeros([BLOCK], tl.int32)
    for at in range(0, size, BLOCK):
        values = tl.load(x + row * stride_x + at + lanes, mask=at + lanes < size, other=float("-inf")).to(tl.float32)
        broken |= (values != values).to(tl.int32)
        new = tl.maximum(highest, values)
        safe = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(highest - safe) + tl.exp(values - safe)
        highest = new
    top = tl.max(highest, 0)
    safe = tl.where(top == float("-inf"), 0.0, top)
    result = top + tl.log(tl.sum(total * tl.exp(highest - safe), 0))
    tl.store(out + row, tl.where(tl.max(broken, 0) != 0, float("nan"), result))


def row_logsumexp(x: torch.Tensor) -> torch.Tensor:
    """x [S, V] (rows may be strided) → float32 [S, 1]; NaN for a row with NaN."""
    out = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
    if len(x):
        row_logsumexp_kernel[(len(x),)](x, out, x.shape[1], x.stride(0), BLOCK=2048, num_warps=8)
    return out
