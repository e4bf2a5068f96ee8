"""From a step's logprob arrays to records, for the requests that asked."""

from __future__ import annotations

from octavo.plan import Int32Array, LogprobArrays
from octavo.request import PromptLogprobs, SampleLogprobs, TokenLogprobs
from octavo.scheduler.sequence import Sequence


def entry(token: int, arrays: LogprobArrays, i: int, k: int) -> TokenLogprobs:
    """Row i of the arrays, cut to the k tokens that were asked for."""
    return TokenLogprobs(
        token,
        float(arrays.chosen[i]),
        int(arrays.ranks[i]),
        arrays.top_ids[i, :k].tolist(),
        arrays.top_logprobs[i, :k].tolist(),
    )


def sample_logprobs(sequence: Sequence, token: int, arrays: LogprobArrays, i: int) -> SampleLogprobs:
    """The record of a sampled token."""
    k = sequence.request.params.logprobs or 0
    return SampleLogprobs(sequence.request.handle, sequence.index, entry(token, arrays, i, k))


def scored_prompt(
    sequence: Sequence, tokens: Int32Array, start: int, arrays: LogprobArrays, k: int
) -> list[PromptLogprobs]:
    """The records of a chunk's targets, without those that were sent before a preemption.

    The chunk's j-th token predicts the prompt token at start + j + 1.
    """
    skip = max(0, sequence.num_scored - start)
    entries = [entry(int(tokens[start + j + 1]), arrays, j, k) for j in range(skip, len(arrays.chosen))]
    if not entries:
        return []
    sequence.num_scored = start + len(arrays.chosen)
    return [PromptLogprobs(sequence.request.handle, start + skip + 1, entries)]
