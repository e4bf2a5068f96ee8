"""The workloads that engines are compared on: token-id prompts with fixed output lengths, seeded.

Every engine that runs one gets the very same ids: they depend on the seed and on numpy's PCG64 stream only. Outputs
have a fixed length (EOS ignored), so that engines do equal work whatever their weights say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

FIRST_ID = 1000
VOCAB_SIZE = 128_000
"""Ids are drawn from [FIRST_ID, VOCAB_SIZE): ordinary tokens of a Llama 3 vocabulary."""


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """One prompt and how many tokens to generate for it."""

    prompt_token_ids: list[int]
    output_len: int


Workload = list[BenchRequest]


def _draw(rng: np.random.Generator, count: int, high: int = VOCAB_SIZE) -> list[int]:
    ids: list[int] = rng.integers(min(FIRST_ID, high - 1), high, count).tolist()
    return ids


def conversations(count: int = 1000, seed: int = 0) -> Workload:
    """Lengths like ShareGPT's: log-normal, means of about 160 in and 202 out, each cut to [4, 1024]."""
    rng = np.random.default_rng(seed)
    inputs = np.clip(rng.lognormal(4.4, 1.35, count), 4, 1024).astype(int)
    outputs = np.clip(rng.lognormal(4.85, 1.0, count), 4, 1024).astype(int)
    return [BenchRequest(_draw(rng, n), m) for n, m in zip(inputs.tolist(), outputs.tolist(), strict=True)]


def fixed(count: int, input_len: int, output_len: int, *, seed: int = 0, vocab_size: int = VOCAB_SIZE) -> Workload:
    """`count` random prompts of one length."""
    rng = np.random.default_rng(seed)
    return [BenchRequest(_draw(rng, input_len, vocab_size), output_len) for _ in range(count)]


def shared_prefixes(
    num_prefixes: int = 16,
    per_prefix: int = 32,
    prefix_len: int = 2048,
    tail_len: int = 128,
    output_len: int = 128,
    seed: int = 0,
) -> Workload:
    """Requests under a few system prompts, interleaved: what prefix caching is for."""
    rng = np.random.default_rng(seed)
    prefixes = [_draw(rng, prefix_len) for _ in range(num_prefixes)]
    return [BenchRequest(prefix + _draw(rng, tail_len), output_len) for _ in range(per_prefix) for prefix in prefixes]


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "single_128_256": lambda: fixed(1, 128, 256),
    "sharegpt_1000": conversations,
    "in512_out512_x512": lambda: fixed(512, 512, 512),
    "prefill_4096_out8_x64": lambda: fixed(64, 4096, 8),
    "prefix_16x32": shared_prefixes,
}
"""One stream (latency); mixed lengths (the headline); long decodes in a large batch; prompts; shared prefixes."""


def take(workload: Sequence[BenchRequest], limit: int | None) -> Workload:
    """The first `limit` requests; all of them for None."""
    return list(workload if limit is None else workload[:limit])


def fit_vocabulary(workload: Sequence[BenchRequest], vocab_size: int) -> tuple[Workload, bool]:
    """The workload with ids below `vocab_size`, taken modulo it, and whether that changed anything."""
    if all(max(request.prompt_token_ids) < vocab_size for request in workload):
        return list(workload), False
    return [
        BenchRequest([token % vocab_size for token in request.prompt_token_ids], request.output_len)
        for request in workload
    ], True
