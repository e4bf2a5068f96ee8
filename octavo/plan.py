"""The seam between scheduler and runner: one step as data (int arrays and small structs, never objects).

A plan is applied in a fixed order, which is also why pages and rows may be reused at once:
free_rows, new_rows, block-table writes, swap_out, swap_in, page copies, then the forward pass. Steps run in order on
the device, so a page freed when step N is committed may be given away by step N+2 while N+1 still writes to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from octavo.request import SamplingParams

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


def _empty() -> Int32Array:
    return np.empty(0, np.int32)


_NO_PAIRS: Int32Array = np.empty((0, 2), np.int32)


def _no_pairs() -> Int32Array:
    return _NO_PAIRS  # nobody writes to a plan


@dataclass(frozen=True, slots=True)
class NewRow:
    """A sequence that takes a row: on admission, on resuming after preemption, and for each further sample of n.

    Attributes:
        row: index in [0, max_num_seqs).
        params: sampling parameters.
        seed: this sample's own 64-bit seed.
        num_prompt_tokens: of the original prompt; what follows in `token_ids` was generated before a preemption.
        token_ids: the known tokens, only if `params` has a penalty (their counts are needed); else empty.
        stop_ids: ids that `min_tokens` must keep away (EOS and stop ids).
    """

    row: int
    params: SamplingParams
    seed: int
    num_prompt_tokens: int
    token_ids: Int32Array = field(default_factory=_empty)
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptLogprobsPlan:
    """Score prompt tokens during this chunk: `targets[j]` is the token that follows the chunk's j-th token.

    Attributes:
        index: position in `StepPlan.rows`.
        k: how many most likely tokens to report.
        targets: int32, at most the chunk's length (the last prompt token has no target).
    """

    index: int
    k: int
    targets: Int32Array


@dataclass(frozen=True, slots=True)
class PoolingPlan:
    """Take hidden states of this chunk into an embedding.

    Attributes:
        index: position in `StepPlan.rows`; such a row does not sample.
        kind: which states count.
        last: the chunk ends the prompt, so the result brings the embedding.
    """

    index: int
    kind: Literal["last", "mean"]
    last: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: rows and how many of their tokens to compute, and what changed since the step before.

    Attributes:
        step: counts from 0.
        rows, query_lens, context_lens: [R]; row r computes tokens [context, context + query) of its sequence.
            Rows with query_len 1 (decodes) come first, of the others those without context last.
        sample: [R]; whether the row's last token yields a sample (it is the last known one).
        from_host: [R]; the row's ids are in `token_ids`. Otherwise query_len is 1 and the id is the one sampled
            last in that row, which may be known on the device only.
        token_ids: the ids of all `from_host` rows, concatenated in the order of `rows`.
        free_rows: rows whose sequence ended or was preempted.
        block_rows, block_starts, block_counts, block_pages: for each i,
            block_table[block_rows[i], block_starts[i]:][:block_counts[i]] = the next block_counts[i] pages.
        mask_rows: [G], rows that keep a grammar; masks: int32 [G, (V + 31) // 32], bit i of word w allows the token
            32 w + i to be drawn in this step.
        copy_pages: [C, 2] of (source, destination), copied in every layer before the forward pass.
        swap_out, swap_in: [N, 2] of (page, host slot): pages copied to host memory, then others back from it, in every
            layer.
    """

    step: int
    rows: Int32Array
    query_lens: Int32Array
    context_lens: Int32Array
    sample: BoolArray
    from_host: BoolArray
    token_ids: Int32Array
    free_rows: Int32Array = field(default_factory=_empty)
    new_rows: tuple[NewRow, ...] = ()
    block_rows: Int32Array = field(default_factory=_empty)
    block_starts: Int32Array = field(default_factory=_empty)
    block_counts: Int32Array = field(default_factory=_empty)
    block_pages: Int32Array = field(default_factory=_empty)
    copy_pages: Int32Array = field(default_factory=_no_pairs)
    swap_out: Int32Array = field(default_factory=_no_pairs)
    swap_in: Int32Array = field(default_factory=_no_pairs)
    prompt_logprobs: tuple[PromptLogprobsPlan, ...] = ()
    pooling: tuple[PoolingPlan, ...] = ()
    mask_rows: Int32Array = field(default_factory=_empty)
    masks: Int32Array = field(default_factory=lambda: np.empty((0, 0), np.int32))

    @property
    def num_tokens(self) -> int:
        return int(self.query_lens.sum())


@dataclass(frozen=True, slots=True)
class LogprobArrays:
    """Logprobs of S positions: chosen token's logprob [S] and rank from 1 [S]; top ids and logprobs [S, K].

    K is the largest count asked for in the step; a row that asked for fewer uses its first columns.
    """

    chosen: Float32Array
    ranks: Int32Array
    top_ids: Int32Array
    top_logprobs: Float32Array


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step sampled.

    Attributes:
        tokens: [S], for the rows with `sample`, in their order.
        logprobs: for the same S rows, if any of them asks for logprobs.
        prompt_logprobs: one for each entry of `StepPlan.prompt_logprobs`.
        failed: indices into `StepPlan.rows` whose numbers were not finite; their token or embedding means nothing.
        pooled: float32 [hidden_size] for each entry of `StepPlan.pooling` with `last`.
    """

    step: int
    tokens: Int32Array
    logprobs: LogprobArrays | None = None
    prompt_logprobs: tuple[LogprobArrays, ...] = ()
    failed: tuple[int, ...] = ()
    pooled: tuple[Float32Array, ...] = ()
