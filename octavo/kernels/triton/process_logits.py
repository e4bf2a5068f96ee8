# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""What a row's parameters do to its logits before the temperature: masks, min_tokens, bias, penalties.

Parameters live on the device in tables indexed by the sequence's row, so that a graph captured once serves any mix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

# Columns of SamplingTables.floats and .ints
TEMPERATURE, TOP_P, MIN_P, REPETITION, FREQUENCY, PRESENCE = (tl.constexpr(i) for i in range(6))
TOP_K, NUM_PROMPT, MIN_TOKENS, NUM_BIAS, NUM_STOP, FLAGS = (tl.constexpr(i) for i in range(6))
WIDTH = tl.constexpr(8)
HAS_MASK, HAS_PENALTIES, WANTS_RANK = (tl.constexpr(1 << i) for i in range(3))


@dataclass(frozen=True, slots=True)
class SamplingTables:
    """The rows' sampling parameters and penalty state.

    Attributes:
        floats: float32 [rows, 8]: temperature (below 1e-5 is greedy), top_p, min_p, repetition, frequency and
            presence penalty; the rest unused.
        ints: int32 [rows, 8]: top_k (0 or less keeps all), prompt length, min_tokens, number of biases, number of
            stop ids, flags (1: `mask` applies, 2: a penalty applies, 4: the chosen token's rank is wanted).
        seeds: int64 [rows], the 64 bits of each seed.
        bias_ids, bias_values: int32 and float32 [rows, max biases].
        stop_ids: int32 [rows, max stop ids], which min_tokens keeps away.
        mask: int32 [rows, (V + 31) // 32]: bit i of word w allows token 32 w + i.
        in_prompt: the same form; whether the prompt has a token.
        counts: int16 [rows, V]; how often the output has each token.
    """

    floats: torch.Tensor
    ints: torch.Tensor
    seeds: torch.Tensor
    bias_ids: torch.Tensor
    bias_values: torch.Tensor
    stop_ids: torch.Tensor
    mask: torch.Tensor
    in_prompt: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def empty(
        cls, rows: int, vocab_size: int, device: torch.device, max_bias: int = 300, max_stop: int = 64
    ) -> SamplingTables:
        """All rows greedy, without filters."""

        def zeros(columns: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(rows, columns, dtype=dtype, device=device)

        words = -(-vocab_size // 32)
        return cls(
            zeros(8, torch.float32), zeros(8, torch.int32), torch.zeros(rows, dtype=torch.int64, device=device),
            zeros(max_bias, torch.int32), zeros(max_bias, torch.float32), zeros(max_stop, torch.int32),
            zeros(words, torch.int32), zeros(words, torch.int32), zeros(vocab_size, torch.int16),
        )  # fmt: skip


@triton.jit
def is_plain(ints, row):
    """Whether nothing is done to the row's logits before the temperature."""
    here = ints + row * WIDTH
    special = tl.load(here + NUM_BIAS) + tl.load(here + NUM_STOP) * tl.load(here + MIN_TOKENS)
    return (special == 0) & ((tl.load(here + FLAGS) & (HAS_MASK | HAS_PENALTIES)) == 0)


@triton.jit
def bit_of(words, tokens, inside):
    """Whether each token's bit is set."""
    return ((tl.load(words + tokens // 32, mask=inside, other=0) >> (tokens % 32)) & 1) != 0


@triton.jit
def process_logits_kernel(
    logits, processed, rows, positions, floats, ints, bias_ids, bias_values, stop_ids, mask, in_prompt, counts,
    size, stride_logits, stride_bias, stride_stop, stride_mask, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one row's vocabulary; nothing for plain rows."""
    s = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + s).to(tl.int64)
    if is_plain(ints, row):
        return
    here, numbers = ints + row * WIDTH, floats + row * WIDTH
    tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = tokens < size
    x = tl.load(logits + s * stride_logits + tokens, mask=inside, other=float("-inf")).to(tl.float32)
    flags = tl.load(here + FLAGS)
    if flags & HAS_MASK:
        x = tl.where(bit_of(mask + row * stride_mask, tokens, inside), x, float("-inf"))
    if tl.load(positions + s) - tl.load(here + NUM_PROMPT) < tl.load(here + MIN_TOKENS):
        for i in range(tl.load(here + NUM_STOP)):
            x = tl.where(tokens == tl.load(stop_ids + row * stride_stop + i), float("-inf"), x)
    for i in range(tl.load(here + NUM_BIAS)):
        hit = tokens == tl.load(bias_ids + row * stride_bias + i)
        x += tl.where(hit, tl.load(bias_values + row * stride_bias + i), 0.0)
    if flags & HAS_PENALTIES:
        count = tl.load(counts + row * size + tokens, mask=inside, other=0).to(tl.float32)
        seen = bit_of(in_prompt + row * stride_mask, tokens, inside) | (count > 0)
        repetition = tl.load(numbers + REPETITION)
        x = tl.where(seen, tl.where(x > 0, x / repetition, x * repetition), x)
        x -= tl.load(numbers + FREQUENCY) * count
        x -= tl.where(count > 0, tl.load(numbers + PRESENCE), 0.0)
    tl.store(processed + s * size + tokens, x, mask=inside)


def process_logits(
    logits: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor, tables: SamplingTables, processed: torch.Tensor
) -> None:
    """Write the rows that are not plain to `processed`; the others stay as they are there.

    Args:
        logits: [S, V], bfloat16, float16 or float32.
        rows, positions: integers [S]: whose logits they are; index in its sequence of the token to be drawn.
        processed: float32 [at least S, V], contiguous.
    """
    count, size = logits.shape
    if count == 0:
        return
    block = 4096
    process_logits_kernel[(count, triton.cdiv(size, block))](
        logits, processed, rows, positions, tables.floats, tables.ints, tables.bias_ids, tables.bias_values,
        tables.stop_ids, tables.mask, tables.in_prompt, tables.counts, size, logits.stride(0),
        tables.bias_ids.stride(0), tables.stop_ids.stride(0), tables.mask.stride(0), BLOCK=block, num_warps=8,
    )  # fmt: skip
