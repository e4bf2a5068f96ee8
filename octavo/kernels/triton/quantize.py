# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Dynamic per-row quantization to e4m3, for the kernels that end in it."""

from __future__ import annotations

import triton
import triton.language as tl

E4M3_MAX = tl.constexpr(448.0)


@triton.jit
def quantize_row(values):
    """float32 [N] → (values / scale within +-448, scale), scale = max|values| / 448; 1 for a row of zeros."""
    largest = tl.max(tl.abs(values), 0)
    scale = tl.where(largest > 0, largest / E4M3_MAX, 1.0)
    return tl.clamp(values / scale, -E4M3_MAX, E4M3_MAX), scale
