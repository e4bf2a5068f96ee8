# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Rows of a matrix by index: token embedding, and the last row of each sequence before the output head."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def embedding_kernel(ids, weight, out, size, stride_weight, BLOCK: tl.constexpr):
    """One block of one token's row."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(ids + token).to(tl.int64)
    values = tl.load(weight + row * stride_weight + columns, mask=columns < size, other=0.0)
    tl.store(out + token * size + columns, values, mask=columns < size)


def embedding(token_ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Integers [T] in [0, V), weight [V, H] (rows may be strided) → [T, H]. An id out of range reads out of bounds."""
    tokens, size = token_ids.shape[0], weight.shape[1]
    out = torch.empty(tokens, size, dtype=weight.dtype, device=weight.device)
    if tokens:
        block = min(2048, triton.next_power_of_2(size))
        grid = (tokens, triton.cdiv(size, block))
        embedding_kernel[grid](token_ids, weight, out, size, weight.stride(0), BLOCK=block, num_warps=4)
    return out
