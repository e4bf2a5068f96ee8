"""Requests and their sequences, one for each sample."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import numpy as np

from octavo.kv import page_digests, root_digest
from octavo.plan import Int32Array
from octavo.request import EngineRequest, FinishReason


class Phase(enum.Enum):
    """Where a sequence is. FORKING waits for its parent's pages; everything else is as it says."""

    FORKING = "forking"
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


Key = tuple[float, ...]


@dataclass(eq=False, slots=True)
class Sequence:
    """One sample of a request.

    While it runs, its tokens and counts live in the row table; `tokens` is what it takes along into the queue.

    Attributes:
        key: order of service, the smallest first.
        tokens: known tokens (prompt, and what was generated before a preemption) while it does not run.
        row: while it runs.
        digests: of the full pages of its known tokens, as far as they were needed.
        num_scored: prompt positions whose logprobs were sent.
        resumes: it was preempted before.
        settled: while it runs, tokens whose computation is known to have succeeded.
    """

    request: EngineRequest
    index: int
    seed: int
    key: Key
    limit: int
    tokens: Int32Array
    phase: Phase = Phase.WAITING
    row: int = -1
    root: bytes = b""
    digests: list[bytes] = field(default_factory=list)
    num_scored: int = 0
    resumes: bool = False
    settled: int = 0

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        params = self.request.params
        return params.stop_token_ids if params.ignore_eos else (*self.request.eos_token_ids, *params.stop_token_ids)

    @property
    def scores_prompt(self) -> bool:
        """Whether prompt logprobs are still owed; until then cached pages are of no use to it."""
        return (
            self.index == 0
            and self.request.params.prompt_logprobs is not None
            and self.num_scored < self.num_prompt - 1
        )

    @property
    def needs_all_states(self) -> bool:
        """Whether every token of it must be computed here, so that cached pages are of no use."""
        return self.scores_prompt or self.request.pooling == "mean"

    def end_at(self, token: int, known: int) -> tuple[FinishReason, int | None] | None:
        """Why the sequence ends with this token as its `known`-th, if it does: reason and stop reason."""
        params = self.request.params
        if token in self.stop_ids and known - self.num_prompt > params.min_tokens:
            is_eos = not params.ignore_eos and token in self.request.eos_token_ids
            return "stop", None if is_eos else token
        return ("length", None) if known >= self.limit else None

    def extend_digests(self, tokens: Int32Array, num_pages: int, page_size: int) -> list[bytes]:
        """Digests of the first `num_pages` pages of `tokens`, computing those not known yet."""
        have = len(self.digests)
        if num_pages > have:
            parent = self.digests[-1] if have else self.root
            self.digests += page_digests(parent, tokens[have * page_size : num_pages * page_size], page_size)
        return self.digests[:num_pages]


@dataclass(eq=False, slots=True)
class Group:
    """A request's sequences. `open` are those that have not ended."""

    request: EngineRequest
    sequences: list[Sequence]
    started: bool = False

    @property
    def open(self) -> list[Sequence]:
        return [sequence for sequence in self.sequences if sequence.phase is not Phase.ENDED]

    @property
    def forking(self) -> list[Sequence]:
        return [sequence for sequence in self.sequences if sequence.phase is Phase.FORKING]


def make_group(request: EngineRequest, key: Key, max_model_len: int) -> Group:
    """The first sample waits; the others fork from it when it has computed the prompt."""
    prompt = np.asarray(request.prompt_token_ids, np.int32)
    params = request.params
    limit = min(max_model_len, len(prompt) + (params.max_tokens or max_model_len))
    root = root_digest(request.adapter, request.media, request.cache_salt)
    sequences = [
        Sequence(
            request,
            index,
            sample_seed(params.seed or 0, index),
            (*key, index),
            limit,
            prompt,
            Phase.FORKING if index else Phase.WAITING,
            root=root,
        )
        for index in range(params.n)
    ]
    return Group(request, sequences)


def sample_seed(seed: int, index: int) -> int:
    """Sample 0 uses the request's seed; the others a 64-bit mix of seed and index (SplitMix64, Steele et al. 2014)."""
    if index == 0:
        return seed & (2**64 - 1)
    z = (seed + index * 0x9E3779B97F4A7C15) & (2**64 - 1)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return z ^ (z >> 31)
