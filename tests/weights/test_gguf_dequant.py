"""Every block format against the `gguf` package's own dequantization."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from octavo.weights.gguf import BLOCKS
from octavo.weights.gguf_dequant import DEQUANTIZE


@pytest.mark.parametrize("name", sorted(DEQUANTIZE))
def test_equals_the_oracle_on_random_blocks(name: str) -> None:
    size = next(size for other, _, size in BLOCKS.values() if other == name)
    blocks = np.random.default_rng(0).integers(0, 256, (300, size), np.uint8)
    with np.errstate(all="ignore"):  # random scales may be NaN
        oracle = gguf.quants.dequantize(blocks.reshape(-1), gguf.GGMLQuantizationType[name]).reshape(300, -1)
        ours = DEQUANTIZE[name](blocks)
    known = np.isfinite(oracle) & (np.abs(oracle) < 1e30)
    assert known.mean() > 0.5
    np.testing.assert_allclose(ours[known], oracle[known], rtol=2e-6, atol=1e-4)
