"""From logits to tokens, each row by its own parameters, its own seed, and nothing else of the batch.

Order on a row: allowed and banned ids, min_tokens, logit bias, repetition, frequency and presence penalties,
temperature, min-p, top-k, top-p, then argmax of logits plus Gumbel noise. Logprobs are of the raw logits.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from octavo.kernels import native
from octavo.kernels.batch_invariant import row_logsumexp
from octavo.kernels.sampling.draw import draw
from octavo.plan import LogprobArrays, NewRow

logger = logging.getLogger(__name__)

GREEDY_BELOW = 1e-5  # temperatures under this are greedy
_CHUNK_BYTES = 64 << 20  # of logits that are looked at together for logprobs


@dataclass(slots=True)
class SamplingRow:
    """One row's parameters, and what its penalties have counted.

    Attributes:
        allowed: mask [V] of the ids that may be drawn; None allows all.
        words: what a grammar allows next, as of `StepPlan.masks`; None allows all.
        simple: nothing but `words` and the temperature says what is drawn.
        bias: (ids, additions).
        in_prompt, counts: [V]; whether the prompt has a token, how often the output has it. None without penalties.
    """

    new: NewRow
    greedy: bool
    plain: bool
    simple: bool = False
    words: npt.NDArray[np.int32] | None = None
    allowed: torch.Tensor | None = None
    bias: tuple[torch.Tensor, torch.Tensor] | None = None
    in_prompt: torch.Tensor | None = None
    counts: torch.Tensor | None = None
    stop_ids: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    @classmethod
    def make(cls, new: NewRow, vocab_size: int) -> SamplingRow:
        params = new.params
        row = cls(new, greedy=params.temperature < GREEDY_BELOW, plain=True)
        if params.allowed_token_ids is not None or params.banned_token_ids:
            row.allowed = torch.full((vocab_size,), params.allowed_token_ids is None)
            row.allowed[list(params.allowed_token_ids or ())] = True
            row.allowed[list(params.banned_token_ids)] = False
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), dtype=torch.int64)
            row.bias = ids, torch.tensor(list(params.logit_bias.values()), dtype=torch.float32)
        if params.repetition_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0:
            known = torch.from_numpy(new.token_ids.astype(np.int64))
            prompt, output = known[: new.num_prompt_tokens], known[new.num_prompt_tokens :]
            row.in_prompt = torch.zeros(vocab_size, dtype=torch.bool).index_fill_(0, prompt, True)
            row.counts = torch.bincount(output, minlength=vocab_size).to(torch.int32)
        if params.min_tokens:
            row.stop_ids = torch.tensor(new.stop_ids, dtype=torch.int64)
        row.plain = row.allowed is None and row.bias is None and row.counts is None and not len(row.stop_ids)
        filtered = params.top_k > 0 or params.top_p < 1 or params.min_p > 0
        row.simple = row.plain and (row.greedy or not filtered)
        return row

    def process(self, logits: torch.Tensor, position: int) -> torch.Tensor:
        """[V] float32, a copy with everything before the temperature applied."""
        params = self.new.params
        logits = logits.to(torch.float32, copy=True)
        if self.allowed is not None:
            logits.masked_fill_(~self.allowed, -math.inf)
        if self.words is not None:
            bits = np.unpackbits(self.words.view(np.uint8), bitorder="little", count=len(logits))
            logits.masked_fill_(torch.from_numpy(bits == 0), -math.inf)
        if len(self.stop_ids) and position - self.new.num_prompt_tokens < params.min_tokens:
            logits[self.stop_ids] = -math.inf
        if self.bias is not None:
            logits[self.bias[0]] += self.bias[1]
        if self.counts is not None and self.in_prompt is not None:
            seen = self.in_prompt | (self.counts > 0)
            penalty = torch.where(logits > 0, 1 / params.repetition_penalty, params.repetition_penalty)
            logits = torch.where(seen, logits * penalty, logits)
            logits -= params.frequency_penalty * self.counts
            logits -= params.presence_penalty * (self.counts > 0)
        return logits


class SamplerState:
    """What each row asked for.

    Attributes:
        special: bool [max_num_seqs], rows that need more than the highest logit's id.
        scored: bool [max_num_seqs], rows that want logprobs.
    """

    def __init__(self, max_num_seqs: int, vocab_size: int):
        self.vocab_size = vocab_size
        self.rows: list[SamplingRow | None] = [None] * max_num_seqs
        self.special = np.zeros(max_num_seqs, np.bool_)
        self.scored = np.zeros(max_num_seqs, np.bool_)

    def set_row(self, new: NewRow) -> None:
        """A sequence takes a row; nothing of the row's last owner stays."""
        row = SamplingRow.make(new, self.vocab_size)
        self.rows[new.row] = row
        self.special[new.row] = not (row.greedy and row.plain)
        self.scored[new.row] = new.params.logprobs is not None

    def set_mask(self, row: int, words: npt.NDArray[np.int32]) -> None:
        """What a row's grammar allows next, in the packing of `StepPlan.masks`; it holds until the next call."""
        entry = self[row]
        entry.words, entry.plain = np.ascontiguousarray(words), False
        self.special[row] = True

    def clear_row(self, row: int) -> None:
        self.rows[row] = None

    def __getitem__(self, row: int) -> SamplingRow:
        entry = self.rows[row]
        if entry is None:
            raise ValueError(f"row {row} samples but has no parameters")
        return entry


@dataclass(frozen=True, slots=True)
class SampleOutput:
    """Tokens int32 [S]; `failed` bool [S] marks rows whose logits were not finite, whose token means nothing."""

    tokens: torch.Tensor
    failed: torch.Tensor
    logprobs: LogprobArrays | None


class Sampler:
    """Draws tokens on the CPU."""

    def __init__(self, state: SamplerState):
        self.state = state

    def sample(
        self, logits: torch.Tensor, rows: npt.NDArray[np.int32], positions: npt.NDArray[np.int32]
    ) -> SampleOutput:
        """One token for each row of logits.

        Args:
            logits: [S, V].
            rows: [S], which row of the state each is.
            positions: [S], index in the sequence of the token to be drawn.
        """
        top, tokens = logits.max(dim=1)
        failed = ~torch.isfinite(top)
        for i in np.flatnonzero(self.state.special[rows]).tolist():
            if not failed[i]:
                tokens[i] = self._draw_or_fail(i, self.state[rows[i]], logits[i], int(positions[i]), failed)
        return SampleOutput(tokens.to(torch.int32), failed, self._logprobs(logits, tokens, rows))

    def _draw_or_fail(
        self, i: int, entry: SamplingRow, logits: torch.Tensor, position: int, failed: torch.Tensor
    ) -> int:
        """A row's token; what goes wrong in one row marks that row alone."""
        try:
            token = self._choose(entry, logits, position)
            if entry.counts is not None:
                entry.counts[token] += 1
        except Exception:
            logger.exception("a row could not be sampled")
            failed[i] = True
            return 0
        return token

    @staticmethod
    def _choose(entry: SamplingRow, logits: torch.Tensor, position: int) -> int:
        params = entry.new.params
        if entry.words is not None and entry.simple and native.usable(logits):
            rate = 0.0 if entry.greedy else 1 / params.temperature
            return native.gumbel_argmax(logits, rate, entry.new.seed, position, entry.words)
        processed = logits.float() if entry.plain else entry.process(logits, position)
        if entry.greedy:
            return int(processed.argmax())
        return draw(processed, params.temperature, params.top_k, params.top_p, params.min_p, entry.new.seed, position)

    def _logprobs(
        self, logits: torch.Tensor, tokens: torch.Tensor, rows: npt.NDArray[np.int32]
    ) -> LogprobArrays | None:
        """Of the rows that want them; the entries of others are zeros."""
        wanted = np.flatnonzero(self.state.scored[rows])
        if not len(wanted):
            return None
        k = max(self.state[rows[i]].new.params.logprobs or 0 for i in wanted)
        of_wanted = logprobs_of(lambda part: logits[wanted[part]], tokens[wanted], k)
        count = len(rows)
        spread = LogprobArrays(
            np.zeros(count, np.float32),
            np.zeros(count, np.int32),
            np.zeros((count, k), np.int32),
            np.zeros((count, k), np.float32),
        )
        spread.chosen[wanted], spread.ranks[wanted] = of_wanted.chosen, of_wanted.ranks
        spread.top_ids[wanted], spread.top_logprobs[wanted] = of_wanted.top_ids, of_wanted.top_logprobs
        return spread


def logprobs_of(logits: Callable[[slice], torch.Tensor], targets: torch.Tensor, k: int) -> LogprobArrays:
    """Logprob and rank of each target, and the k most likely tokens, in bounded memory.

    Args:
        logits: returns [part, V] for a slice of the positions; it is asked for a few at a time.
        targets: int64 [S].
    """
    count = len(targets)
    chosen, ranks = np.empty(count, np.float32), np.empty(count, np.int32)
    top_ids, top_logprobs = np.empty((count, k), np.int32), np.empty((count, k), np.float32)
    at, step = 0, 1
    while at < count:
        part = slice(at, min(at + step, count))
        values = logits(part).float()
        step = max(1, _CHUNK_BYTES // (4 * values.shape[1]))
        of_target = values.gather(1, targets[part, None])
        if native.usable(values):
            total, beaten_by = native.logit_scores(values, targets[part].contiguous())
        else:
            total, beaten_by = row_logsumexp(values), (values > of_target).sum(dim=1)
        chosen[part] = (of_target - total)[:, 0].cpu().numpy()
        ranks[part] = (beaten_by + 1).cpu().numpy()
        if k:
            best = values.topk(min(k, values.shape[1]), dim=1)
            top_ids[part, : best.indices.shape[1]] = best.indices.cpu().numpy()
            top_logprobs[part, : best.indices.shape[1]] = (best.values - total).cpu().numpy()
        at = part.stop
    return LogprobArrays(chosen, ranks, top_ids, top_logprobs)
