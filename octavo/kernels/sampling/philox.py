"""Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): noise by key, without state.

The noise of a token is lane `token % 4` of the block with key = seed (low word, high word) and counter =
(token // 4, position, 0, 0). It depends on nothing else, so a request draws the same tokens in any batch, after a
preemption, and on any device.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt32s = npt.NDArray[np.uint32]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox_4x32(counter: tuple[UInt32s, UInt32s, UInt32s, UInt32s], key: tuple[int, int]) -> tuple[UInt32s, ...]:
    """Ten rounds on counters of one shape; returns the four output words."""
    c0, c1, c2, c3 = (word.astype(np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (product1 >> _HALF) ^ c1 ^ np.uint64(k0), (product0 >> _HALF) ^ c3 ^ np.uint64(k1)
        c1, c3 = product1 & _LOW, product0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return tuple(word.astype(np.uint32) for word in (c0, c1, c2, c3))


def random_words(seed: int, position: int, tokens: npt.NDArray[np.int64]) -> UInt32s:
    """One 32-bit word for each token id.

    Args:
        seed: 64 bits.
        position: index in the sequence of the token that is drawn.
    """
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    whole = len(tokens) % 4 == 0 and len(tokens) > 64 and tokens[0] == 0 and tokens[-1] == len(tokens) - 1
    blocks = np.arange(len(tokens) // 4, dtype=np.uint32) if whole else (tokens >> 2).astype(np.uint32)
    zeros = np.zeros_like(blocks)
    words = philox_4x32((blocks, np.full_like(blocks, position & 0xFFFFFFFF), zeros, zeros), key)
    if whole:  # every lane of every block is wanted
        every: UInt32s = np.stack(words, axis=1).reshape(-1)
        return every
    some: UInt32s = np.stack(words)[tokens & 3, np.arange(len(tokens))]
    return some


def gumbel_noise(seed: int, position: int, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """-log(-log(u)) with u = (word + 1/2) / 2^32: argmax(logits + noise) draws from softmax(logits) (Gumbel 1954)."""
    u = (random_words(seed, position, tokens).astype(np.float64) + 0.5) * 2.0**-32
    return -np.log(-np.log(u))
