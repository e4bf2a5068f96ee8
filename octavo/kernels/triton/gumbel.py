# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Gumbel noise on the device, keyed as `octavo.kernels.sampling.philox` keys it, in float32."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def negative_log(words):
    """-log(u), u = (word + 1/2) / 2^32, to a few units in the last place over its whole range.

    Near 1, float32 cannot hold u: then v = 1 - u is exact enough, and log1p(-v) = log(w) * v / (1 - w) with
    w = 1 - v rounded (Kahan's correction).
    """
    small = (words.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    v = ((words ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    w = 1.0 - v
    corrected = tl.where(w == 1.0, v, -tl.log(w) * (v / tl.where(w == 1.0, 1.0, 1.0 - w)))
    return tl.where(words < 0x80000000, -tl.log(small), corrected)


@triton.jit
def gumbel_noise(seed, position, first_token, BLOCK: tl.constexpr):
    """float32 [BLOCK] for tokens first_token..., a multiple of 4; one Philox block serves four tokens."""
    blocks = (first_token // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    zeros = blocks * 0
    word0, word1, word2, word3 = tl.philox(seed, blocks, zeros + position.to(tl.uint32), zeros, zeros)
    words = tl.reshape(tl.join(tl.join(word0, word2), tl.join(word1, word3)), [BLOCK])
    return -tl.log(negative_log(words))
