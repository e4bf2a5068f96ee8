"""Philox-4x32-10 against the vectors that its authors publish, and the noise made of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.kernels import native
from octavo.kernels.sampling.philox import gumbel_noise, philox_4x32, random_words

VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    words = philox_4x32(tuple(np.array([c], np.uint32) for c in counter), key)
    assert tuple(int(word[0]) for word in words) == expected


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, 2**64 - 1, 0x123456789ABCDEF])
def test_a_token_has_one_word_however_it_is_asked_for(seed: int) -> None:
    everything = random_words(seed, 77, np.arange(1000, dtype=np.int64))
    some = np.array([999, 3, 3, 500, 0], np.int64)
    assert random_words(seed, 77, some).tolist() == everything[some].tolist()
    assert (random_words(seed, 78, some) != everything[some]).any()
    assert len(np.unique(everything)) > 990


def test_noise_is_gumbel() -> None:
    noise = gumbel_noise(5, 9, np.arange(1 << 16, dtype=np.int64))
    assert np.isfinite(noise).all()
    assert noise.mean() == pytest.approx(0.5772, abs=0.02) and noise.var() == pytest.approx(np.pi**2 / 6, rel=0.03)


@pytest.mark.parametrize("vocab", [1, 5, 999, 49152])
def test_the_compiled_draw_is_the_same_draw(vocab: int) -> None:
    native.configure()
    if not native.available():
        pytest.skip(f"no compiled kernels here: {native.reason()}")
    rng = np.random.default_rng(vocab)
    differing = 0
    for trial in range(60):
        x = (rng.standard_normal(vocab) * rng.choice([0.5, 3])).astype(np.float32)
        seed, position, inverse = int(rng.integers(0, 2**63)), int(rng.integers(0, 10**6)), float(rng.choice([0.7, 1]))
        scores = x.astype(np.float64) * np.float32(inverse) + gumbel_noise(seed, position, np.arange(vocab))
        token = native.gumbel_argmax(torch.from_numpy(x), inverse, seed, position)
        differing += token != int(scores.argmax())
        assert scores[token] > scores.max() - 1e-4, trial
    assert differing <= 1
