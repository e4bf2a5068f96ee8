"""Beam search as a rule over numbers: which hypotheses go on, which have ended, and when the search is over.

It decides as `transformers` does for one prompt (`generate(num_beams=k, num_return_sequences=k)`); the search itself is
older (Lowerre 1976). Rows, pages and steps are the business of `beams_rows`.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo.plan import Float32Array, Int32Array
from octavo.request import EngineRequest, FinishReason, TokenLogprobs


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """A generated token and, by its parent, all before it: beams with a common beginning hold it once.

    Attributes:
        entry: the token's logprobs, if the request asked for them.
    """

    parent: Link | None
    token: int
    entry: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Beam:
    """An open hypothesis.

    Attributes:
        score: sum of the logprobs of its tokens.
        last: its last token; None while there is none.
        parent: the beam it goes on from, as a place in the list of beams of the turn before.
    """

    score: float
    last: Link | None = None
    parent: int = 0

    @property
    def tokens(self) -> list[int]:
        """Generated tokens."""
        return [link.token for link in chain(self.last)]


@dataclass(frozen=True, slots=True, eq=False)
class Hypothesis:
    """A hypothesis that has ended.

    Attributes:
        score: sum of its logprobs, by its length to the power of the length penalty.
        cumulative_logprob: the sum itself.
        last: its last token, which is the stop id if one ended it.
    """

    score: float
    cumulative_logprob: float
    last: Link
    reason: FinishReason
    stop_reason: int | None


def chain(last: Link | None) -> list[Link]:
    """The links from the first to this one."""
    links = []
    while last is not None:
        links.append(last)
        last = last.parent
    return links[::-1]


@dataclass(frozen=True, slots=True)
class Top:
    """The most likely next tokens of a beam, the likeliest first: ids and logprobs, both [num_candidates]."""

    ids: Int32Array
    logprobs: Float32Array


class BeamSearch:
    """One prompt's search. All open beams have the same length.

    A turn looks at the best continuations of all beams. Of the best `width` of them, those that stop become
    hypotheses; the best `width` that do not stop are the next beams. At the last token allowed, all of the best stop.

    Attributes:
        beams: the open ones, the best first; before the first turn a single empty one.
        hypotheses: at most `width`, the best first.
    """

    def __init__(self, request: EngineRequest, max_tokens: int):
        params = request.params
        self.width = params.n
        self.beams: list[Beam] = [Beam(0.0)]
        self.hypotheses: list[Hypothesis] = []
        self._length = 0
        self._max_tokens = max_tokens
        self._min_tokens = params.min_tokens
        self._penalty, self._early = params.length_penalty, params.early_stopping
        self._eos = () if params.ignore_eos else request.eos_token_ids
        self._stops = frozenset((*self._eos, *params.stop_token_ids))
        self._num_logprobs = params.logprobs

    def advance(self, tops: Many[Top]) -> bool:
        """Take the next tokens' logprobs of every beam, in the order of `beams`; True if the search is over."""
        scores = np.array([beam.score for beam in self.beams])[:, None] + np.stack([top.logprobs for top in tops])
        self._length += 1
        last = self._length >= self._max_tokens
        beams: list[Beam] = []
        order = np.argsort(-scores, axis=None, kind="stable")
        columns = scores.shape[1]
        place = 0
        for at in order.tolist():
            score, parent, column = float(scores.flat[at]), at // columns, at % columns
            token = int(tops[parent].ids[column])
            stops = token in self._stops
            if score == -np.inf or (stops and self._length <= self._min_tokens):
                continue
            place += 1
            if stops or last:
                if place <= self.width:
                    self._end(score, self._link(parent, token, column, tops[parent]), token if stops else None)
            elif len(beams) < self.width:
                beams.append(Beam(score, self._link(parent, token, column, tops[parent]), parent))
            if place >= self.width and (last or len(beams) == self.width):
                break
        self.beams = beams
        return last or not beams or self._is_over(beams[0].score)

    def _link(self, parent: int, token: int, column: int, top: Top) -> Link:
        entry = None
        if self._num_logprobs is not None:
            k = self._num_logprobs
            entry = TokenLogprobs(
                token, float(top.logprobs[column]), column + 1, top.ids[:k].tolist(), top.logprobs[:k].tolist()
            )
        return Link(self.beams[parent].last, token, entry)

    def _end(self, score: float, last: Link, stop: int | None) -> None:
        """A hypothesis ends; the worst of too many is dropped. Of equals, the first to come stays before."""
        reason: FinishReason = "length" if stop is None else "stop"
        told = None if stop in self._eos else stop
        value = score / self._length**self._penalty
        self.hypotheses.append(Hypothesis(value, score, last, reason, told))
        self.hypotheses.sort(key=lambda hypothesis: -hypothesis.score)
        del self.hypotheses[self.width :]

    def _is_over(self, best: float) -> bool:
        """Whether no open beam is thought to end among the best.

        With early_stopping=False the best open beam is judged at its present length, which may miss a longer one;
        with "never" at the length that is best for it; with True the search ends as soon as enough have ended.
        """
        if len(self.hypotheses) < self.width:
            return False
        if self._early is True:
            return True
        length = self._max_tokens if self._early == "never" and self._penalty > 0 else self._length
        return bool(best / length**self._penalty <= self.hypotheses[-1].score)


def num_candidates(request: EngineRequest) -> int:
    """How many next tokens of a beam can matter: `width` that go on, and every one that stops."""
    params = request.params
    stops = {*params.stop_token_ids, *(() if params.ignore_eos else request.eos_token_ids)}
    return params.n + len(stops)


def common_length(one: npt.NDArray[np.int32], other: npt.NDArray[np.int32]) -> int:
    """Length of the common beginning of two lists of tokens."""
    count = min(len(one), len(other))
    differ = np.flatnonzero(one[:count] != other[:count])
    return int(differ[0]) if len(differ) else count
