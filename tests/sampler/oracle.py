"""The sampler as its definition reads: one row, float64, everything sorted, no shortcut."""

from __future__ import annotations

import math

import numpy as np

from octavo.kernels.sampling.philox import gumbel_noise
from octavo.request import SamplingParams


def processed(
    logits: np.ndarray, params: SamplingParams, prompt: list[int], output: list[int], stop_ids: tuple[int, ...]
) -> np.ndarray:
    x = logits.astype(np.float64)
    if params.allowed_token_ids is not None:
        x = np.where(np.isin(np.arange(len(x)), params.allowed_token_ids), x, -math.inf)
    x[list(params.banned_token_ids)] = -math.inf
    if len(output) < params.min_tokens:
        x[list(stop_ids)] = -math.inf
    for token, addition in (params.logit_bias or {}).items():
        x[token] += addition
    for token in set(prompt) | set(output):
        x[token] = x[token] / params.repetition_penalty if x[token] > 0 else x[token] * params.repetition_penalty
    for token in set(output):
        x[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
    return x


def kept(x: np.ndarray, params: SamplingParams) -> list[int]:
    """Ids that survive min-p, top-k and top-p, most likely first; x is processed and divided by the temperature."""
    order = sorted((i for i in range(len(x)) if x[i] > -math.inf), key=lambda i: (-x[i], i))
    if params.min_p > 0:
        order = [i for i in order if x[i] >= x[order[0]] + math.log(params.min_p)]
    if params.top_k > 0:
        order = order[: params.top_k]
    if params.top_p < 1:
        weights = np.exp(x[order] - x[order[0]])
        reached = np.cumsum(weights) / weights.sum()
        order = order[: int(np.sum(reached < params.top_p)) + 1]
    return order


def choose(
    logits: np.ndarray,
    params: SamplingParams,
    seed: int,
    prompt: list[int],
    output: list[int],
    stop_ids: tuple[int, ...] = (),
) -> int:
    x = processed(logits, params, prompt, output, stop_ids)
    if params.temperature < 1e-5:
        return int(np.argmax(x))
    x = x / params.temperature
    ids = kept(x, params)
    noise = gumbel_noise(seed, len(prompt) + len(output), np.arange(len(x), dtype=np.int64))
    return max(ids, key=lambda i: x[i] + noise[i])
