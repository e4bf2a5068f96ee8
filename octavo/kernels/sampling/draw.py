"""One draw from a row of logits: temperature, min-p, top-k, top-p, Gumbel-max. Exact, without sorting the vocabulary.

Only candidates that a filter can keep are sorted, and only those that survive need noise.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

import octavo.kernels.native as native
from octavo.kernels.sampling.philox import gumbel_noise

_LIKELY = 1024  # the most tokens that top-p is expected to keep


def draw(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float, seed: int, position: int
) -> int:
    """A token id.

    Args:
        logits: float32 [V], at least one finite; -inf is never drawn.
        temperature: above 0.
        top_k: 0 or -1 keeps all; ties at the border go to the lower id.
        top_p: the smallest set of the most likely tokens whose probability reaches it is kept.
        min_p: tokens less likely than min_p times the most likely one are dropped; before top-k and top-p.
    """
    if top_k <= 0 and top_p >= 1 and min_p <= 0:
        if native.available():
            return native.gumbel_argmax(logits, 1 / temperature, seed, position)
        values = logits.numpy().astype(np.float64) / temperature
        return int(np.argmax(values + gumbel_noise(seed, position, np.arange(len(values)))))
    ids, values = _survivors(logits, temperature, top_k, top_p, min_p)
    return int(ids[np.argmax(values + gumbel_noise(seed, position, ids))])


def _survivors(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Ids that the filters keep, most likely first, and their logits over temperature."""
    all_values = logits.numpy()
    best = float(all_values.max())
    ids = _candidates(logits, all_values, best, temperature, top_k, top_p, min_p)
    values = all_values[ids].astype(np.float64) / temperature
    order = np.argsort(-values, kind="stable")
    if 0 < top_k < len(order):
        order = order[:top_k]
    ids, values = ids[order], values[order]
    if top_p < 1:
        weights = np.exp(values - values[0])
        total = weights.sum() if top_k > 0 or min_p > 0 else _total(all_values, best, temperature)
        keep = int(np.searchsorted(np.cumsum(weights), top_p * total)) + 1
        ids, values = ids[:keep], values[:keep]
    return ids, values


def _candidates(
    logits: torch.Tensor,
    all_values: npt.NDArray[np.float32],
    best: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
) -> npt.NDArray[np.int64]:
    """Ids in ascending order that hold all a filter may keep."""
    if min_p > 0:
        return np.flatnonzero(all_values >= best + temperature * math.log(min_p))
    limit = min(top_k if top_k > 0 else _LIKELY, len(all_values))
    border = float(logits.topk(limit).values[-1])
    ids = np.flatnonzero(all_values >= border) if border > -math.inf else np.flatnonzero(all_values > border)
    if top_k > 0:
        return ids
    mass = np.exp((all_values[ids].astype(np.float64) - best) / temperature).sum()
    return ids if mass >= top_p * _total(all_values, best, temperature) else np.flatnonzero(all_values > -math.inf)


def _total(all_values: npt.NDArray[np.float32], best: float, temperature: float) -> float:
    """Sum of exp((x - best) / temperature) over the vocabulary."""
    return float(np.exp((all_values - np.float32(best)) / np.float32(temperature)).sum(dtype=np.float64))
