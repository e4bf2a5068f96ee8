# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""What the attention kernels share: page lookup, score transforms, one step of the online softmax.

Scores are kept in units of log2 (softmax by exp2). The online softmax is that of Milakov and Gimelshein 2018
(arXiv 1805.02867); the merge of partial results that of Dao et al. 2022 (arXiv 2205.14135).
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def key_offsets(
    table, first_key, seq_len, head, stride_page, stride_head, HEAD_DIM, PAGE: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """int64 [TILE]: element offsets of keys first_key... in a cache [page, head, slot, dim]; page 0 past the end."""
    keys = first_key + tl.arange(0, TILE)
    if PAGE % TILE == 0:  # the whole tile lies in one page
        page = tl.load(table + first_key // PAGE).to(tl.int64)
        base = page * stride_page + head.to(tl.int64) * stride_head
        return base + ((first_key % PAGE) + tl.arange(0, TILE)) * HEAD_DIM
    pages = tl.load(table + keys // PAGE, mask=keys < seq_len, other=0).to(tl.int64)
    return pages * stride_page + head.to(tl.int64) * stride_head + (keys % PAGE) * HEAD_DIM


@triton.jit
def transform_scores(dots, keys, positions, slopes, scale_log2, softcap, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr):
    """q.k [M, N] → scores in log2 units: cap * tanh(s / cap) (Gemma 2), then ALiBi's slope * (key - query).

    Without either they are left unscaled: `online_softmax` scales within its exponential.
    """
    scores = dots
    if SOFTCAP:
        x = dots * (scale_log2 / LOG2E / softcap)
        scores = (1 - 2 / (tl.exp2(x * (2 * LOG2E)) + 1)) * (softcap * LOG2E)
    elif ALIBI:
        scores = dots * scale_log2
    if ALIBI:
        scores += slopes[:, None] * (keys[None, :] - positions[:, None]).to(tl.float32) * LOG2E
    return scores


@triton.jit
def visible(keys, positions, WINDOW: tl.constexpr):
    """bool [M, N]: causal, and within the last WINDOW keys if WINDOW > 0."""
    mask = keys[None, :] <= positions[:, None]
    if WINDOW > 0:
        mask &= keys[None, :] > positions[:, None] - WINDOW
    return mask


@triton.jit
def online_softmax(scores, running_max, running_sum, scale_log2, SCALED: tl.constexpr):
    """One step: (weights [M, N], factor for what was accumulated before [M], new maximum, new sum).

    A row that has seen no key yet keeps maximum -inf and sum 0. `scale_log2` > 0; SCALED scores have it already.
    """
    if SCALED:
        new_max = tl.maximum(running_max, tl.max(scores, 1))
        safe = tl.where(new_max == float("-inf"), 0.0, new_max)
        weights = tl.exp2(scores - safe[:, None])
    else:
        new_max = tl.maximum(running_max, tl.max(scores, 1) * scale_log2)
        safe = tl.where(new_max == float("-inf"), 0.0, new_max)
        weights = tl.exp2(scores * scale_log2 - safe[:, None])
    factor = tl.exp2(running_max - safe)
    return weights, factor, new_max, running_sum * factor + tl.sum(weights, 1)
