# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Draw a token from each row of logits without sorting, without float32 copies, without waiting for the host.

Two launches. The first reads all logits once, in blocks: maximum and sum of exponentials (for the logprob), and the
best of logits / temperature + Gumbel noise (Gumbel 1954), which is the draw of rows without filters. The second joins
the blocks. For rows with top-k, top-p or min-p it also finds the border of what is kept, by bisection on the floats'
bit patterns in order: a border is exact when count (or mass) above it is, ties go to the lower ids, and only the
kept compete.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.gumbel import gumbel_noise
from octavo.kernels.triton.process_logits import (
    FLAGS,
    HAS_PENALTIES,
    MIN_P,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    WANTS_RANK,
    WIDTH,
    SamplingTables,
    is_plain,
)  # fmt: skip

GREEDY_BELOW = tl.constexpr(1e-5)
_BLOCK = 4096  # tokens a program of the first launch reads


@triton.jit
def load_logits(values, tokens, size):
    """float32; -inf past the end."""
    return tl.load(values + tokens, mask=tokens < size, other=float("-inf")).to(tl.float32)


@triton.jit
def ordered_key(x):
    """int32 that sorts as the float32 does; -0 as +0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def draw_blocks_kernel(
    logits, processed, rows, positions, floats, ints, seeds, stats, ids, size, stride_logits, BLOCK: tl.constexpr
):
    """stats[s, b] = (maximum, sum of exp(x - maximum), best perturbed logit), ids[s, b] = its token."""
    s = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    row = tl.load(rows + s).to(tl.int64)
    temperature = tl.load(floats + row * WIDTH + TEMPERATURE)
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    raw = tl.load(logits + s * stride_logits + tokens, mask=tokens < size, other=float("-inf")).to(tl.float32)
    highest = tl.max(raw, 0)
    total = tl.sum(tl.exp(raw - tl.where(highest == float("-inf"), 0.0, highest)), 0)
    broken = tl.max((raw != raw).to(tl.int32), 0)
    values = raw
    if is_plain(ints, row) == 0:
        values = tl.load(processed + s * size + tokens, mask=tokens < size, other=float("-inf"))
    if temperature >= GREEDY_BELOW:
        noise = gumbel_noise(tl.load(seeds + row), tl.load(positions + s), block * BLOCK, BLOCK)
        values = values / temperature + noise
    values = tl.where(values == values, values, float("-inf"))
    here = s * tl.num_programs(1) + block
    tl.store(stats + here * 3, tl.where(broken != 0, float("nan"), highest))
    tl.store(stats + here * 3 + 1, total)
    tl.store(stats + here * 3 + 2, tl.max(values, 0))
    tl.store(ids + here, block * BLOCK + tl.argmax(values, 0))


@triton.jit
def mass_above(values, size, border, highest, inverse_temperature, CHUNK: tl.constexpr, STAGES: tl.constexpr):
    """(count, sum of exp((x - highest) / temperature)) of tokens whose key is at least `border`."""
    border = border.to(tl.int32)
    count = tl.zeros([CHUNK], tl.int32)
    mass = tl.zeros([CHUNK], tl.float32)
    for first in tl.range(0, size, CHUNK, num_stages=STAGES):  # one program a row: latency is all
        tokens = first + tl.arange(0, CHUNK)
        x = load_logits(values, tokens, size)
        kept = (ordered_key(x) >= border) & (tokens < size)
        count += kept.to(tl.int32)
        mass += tl.where(kept, tl.exp((x - highest) * inverse_temperature), 0.0)
    return tl.sum(count, 0), tl.sum(mass, 0)


@triton.jit
def find_border(
    values, size, floor, count, mass, highest, inverse_temperature, want_count, want_mass, grain,
    CHUNK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Narrow keys [low, high) until they hold one token or one value, the last that is wanted.

    At or above `low` there are want_count tokens with a mass of want_mass, at or above `high` not; `count` and `mass`
    are what `floor` has. Returns (low, high, count from high on, mass from high on, mass of each token between).
    """
    low = floor
    high = ordered_key(highest).to(tl.int64) + 1
    count_high = count * 0
    mass_high = mass * 0
    while (high - low > grain) & (count - count_high > 1):
        middle = (low + high) >> 1
        count_middle, mass_middle = mass_above(values, size, middle, highest, inverse_temperature, CHUNK, STAGES)
        if (count_middle >= want_count) & (mass_middle >= want_mass):
            low = middle
            count = count_middle
            mass = mass_middle
        else:
            high = middle
            count_high = count_middle
            mass_high = mass_middle
    return low, high, count_high, mass_high, (mass - mass_high) / tl.maximum(count - count_high, 1)


@triton.jit
def draw_filtered(
    values, size, seed, position, temperature, top_k, top_p, min_p, grain,
    CHUNK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The draw of a row with filters: min-p, then top-k, then top-p among what those keep.

    Kept is what lies from key `high` on, and `ties` tokens of [low, high), the lowest ids first.
    """
    highest = float("-inf")
    for first in range(0, size, CHUNK):
        x = load_logits(values, first + tl.arange(0, CHUNK), size)
        highest = tl.maximum(highest, tl.max(x, 0))
    inverse = 1 / temperature
    low = tl.full([], -2139095040, tl.int64)  # the key after -inf's
    if min_p > 0:
        low = tl.maximum(low, ordered_key(highest + temperature * tl.log(min_p)).to(tl.int64))
    count, mass = mass_above(values, size, low, highest, inverse, CHUNK, STAGES)
    high = low
    ties = count * 0
    if (top_k > 0) & (top_k < count):
        low, high, count_high, mass_high, each = find_border(
            values, size, low, count, mass, highest, inverse, top_k, 0.0, grain, CHUNK, STAGES
        )  # fmt: skip
        ties = top_k - count_high
        count = count_high + ties
        mass = mass_high + ties * each
    if top_p < 1:
        target = top_p * mass
        count_low, mass_low = mass_above(values, size, low, highest, inverse, CHUNK, STAGES)
        p_low, p_high, _, mass_high, each = find_border(
            values, size, low, count_low, mass_low, highest, inverse, 1, target, grain, CHUNK, STAGES
        )  # fmt: skip
        needed = tl.maximum(tl.ceil((target - mass_high) / each), 1.0).to(tl.int32)
        if p_low < high:  # top-p ends among the ties that top-k has cut already
            needed = tl.minimum(needed, ties)
        low, high, ties = p_low, p_high, needed
    low, high = low.to(tl.int32), high.to(tl.int32)
    best = float("-inf")
    chosen = 0
    passed = 0
    for first in range(0, size, CHUNK):
        tokens = first + tl.arange(0, CHUNK)
        x = load_logits(values, tokens, size)
        key = ordered_key(x)
        between = ((key >= low) & (key < high)).to(tl.int32)
        kept = (key >= high) | ((between != 0) & (passed + tl.cumsum(between, 0) <= ties))
        noise = gumbel_noise(seed, position, first, CHUNK)
        perturbed = tl.where(kept, x * inverse + noise, float("-inf"))
        here = tl.max(perturbed, 0)
        if here > best:
            best = here
            chosen = first + tl.argmax(perturbed, 0)
        passed += tl.sum(between, 0)
    return chosen


@triton.jit
def draw_kernel(
    logits, processed, rows, positions, floats, ints, seeds, counts, stats, ids, tokens_out, logprobs, ranks, failed,
    last_token, size, stride_logits, num_blocks, BLOCKS: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Join one row's blocks; search and draw again if it has filters."""
    s = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + s).to(tl.int64)
    blocks = tl.arange(0, BLOCKS)
    here = s * num_blocks + blocks
    inside = blocks < num_blocks
    highs = tl.load(stats + here * 3, mask=inside, other=float("-inf"))
    sums = tl.load(stats + here * 3 + 1, mask=inside, other=0.0)
    bests = tl.load(stats + here * 3 + 2, mask=inside, other=float("-inf"))
    highest = tl.max(highs, 0)
    broken = (tl.max((highs != highs).to(tl.int32), 0) != 0) | (tl.abs(highest) == float("inf"))
    token = tl.load(ids + s * num_blocks + tl.argmax(bests, 0))
    numbers, whole = floats + row * WIDTH, ints + row * WIDTH
    temperature = tl.load(numbers + TEMPERATURE)
    top_k, top_p, min_p = tl.load(whole + TOP_K), tl.load(numbers + TOP_P), tl.load(numbers + MIN_P)
    filtered = (top_k > 0) | (top_p < 1) | (min_p > 0)
    if filtered & (temperature >= GREEDY_BELOW) & (broken == 0):
        seed, position = tl.load(seeds + row), tl.load(positions + s)
        if is_plain(ints, row):
            grain = 1
            if logits.dtype.element_ty == tl.bfloat16:
                grain = 1 << 16  # bfloat16's keys lie that far apart
            token = draw_filtered(
                logits + s * stride_logits, size, seed, position, temperature, top_k, top_p, min_p, grain, CHUNK, STAGES
            ).to(token.dtype)
        else:
            token = draw_filtered(
                processed + s * size, size, seed, position, temperature, top_k, top_p, min_p, 1, CHUNK, STAGES
            ).to(token.dtype)
    lse = highest + tl.log(tl.sum(sums * tl.exp(highs - highest), 0))
    mine = tl.load(logits + s * stride_logits + token).to(tl.float32)
    flags = tl.load(whole + FLAGS)
    if flags & WANTS_RANK:
        higher = tl.zeros([CHUNK], tl.int32)
        for first in range(0, size, CHUNK):
            at = first + tl.arange(0, CHUNK)
            raw = tl.load(logits + s * stride_logits + at, mask=at < size, other=float("-inf")).to(tl.float32)
            higher += (raw > mine).to(tl.int32)
        tl.store(ranks + s, tl.sum(higher, 0) + 1)
    if flags & HAS_PENALTIES:
        count = counts + row * size + token
        tl.store(count, tl.minimum(tl.load(count), 32766) + 1)
    tl.store(tokens_out + s, token)
    tl.store(logprobs + s, mine - lse)
    tl.store(failed + s, broken.to(tl.int8))
    tl.store(last_token + row, token)


class Sampler:
    """Buffers for up to `max_rows` draws a step.

    `processed` is the memory for rows with masks, biases or penalties, float32 [max_rows, V].
    """

    def __init__(
        self, max_rows: int, vocab_size: int, device: torch.device, *, hip: bool = torch.version.hip is not None
    ):
        # A whole row is one program of 1,024 threads, whose loads shared memory must hold.
        self._launch = {"STAGES": 2, "num_warps": 16} if hip else {"STAGES": 4, "num_warps": 32}
        self._blocks = triton.cdiv(vocab_size, _BLOCK)
        self.processed = torch.empty(max_rows, vocab_size, dtype=torch.float32, device=device)
        self._stats = torch.empty(max_rows, self._blocks, 3, dtype=torch.float32, device=device)
        self._ids = torch.empty(max_rows, self._blocks, dtype=torch.int32, device=device)

    def __call__(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        tables: SamplingTables,
        *,
        tokens: torch.Tensor,
        logprobs: torch.Tensor,
        ranks: torch.Tensor,
        failed: torch.Tensor,
        last_token: torch.Tensor,
    ) -> None:
        """Draw; call `process_logits` into `processed` before it if any row is not plain.

        Args:
            logits: [S, V], bfloat16, float16 or float32.
            rows, positions: integers [S]: whose logits they are; index in its sequence of the token to be drawn.
            tokens: int32 [S], the draws.
            logprobs: float32 [S], of the draws by the raw logits (natural logarithm).
            ranks: int32 [S], of the draws among the raw logits, from 1; written for rows that want it.
            failed: int8 [S], 1 where a raw logit is NaN or the largest is infinite; the draw means nothing.
            last_token: int32 [rows of the tables]; the draws again, where the next step looks for them.
        """
        count, size = logits.shape
        if count == 0:
            return
        draw_blocks_kernel[(count, self._blocks)](
            logits, self.processed, rows, positions, tables.floats, tables.ints, tables.seeds, self._stats, self._ids,
            size, logits.stride(0), BLOCK=_BLOCK, num_warps=8,
        )  # fmt: skip
        draw_kernel[(count,)](
            logits, self.processed, rows, positions, tables.floats, tables.ints, tables.seeds, tables.counts,
            self._stats, self._ids, tokens, logprobs, ranks, failed, last_token, size, logits.stride(0), self._blocks,
            BLOCKS=triton.next_power_of_2(self._blocks), CHUNK=8192, **self._launch,
        )  # fmt: skip
