"""`Guide`: where a sample stands in its grammar, and what may come next. `GuideMaker` makes them in the engine."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from octavo.grammar.vocabulary import Vocabulary, ll_tokenizer, parser_limits
from octavo.plan import Int32Array
from octavo.request import EngineRequest

VocabularySource = Callable[[int], tuple[Vocabulary, Callable[[str], list[int]] | None]]
_CACHED_GRAMMARS = 128


class Guide:
    """One sample's state: a function of the tokens it generated, so it outlives preemption.

    Attributes:
        words: int32 [(V + 31) // 32], bit i of word w allows the token 32 w + i next.
        over: the answer is complete and nothing may follow it.
        forced: the only token that may come next, if there is but one.
        error: why the grammar cannot be kept any further; "" while it can.
    """

    def __init__(self, matcher: Any, request: EngineRequest, vocab_size: int):
        params = request.params
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._eos = _bits(request.eos_token_ids)
        self._ends = 0 if params.ignore_eos else self._eos
        self._stops = _bits(params.stop_token_ids)
        self._allowed = _every(vocab_size) if params.allowed_token_ids is None else _bits(params.allowed_token_ids)
        self._allowed &= ~_bits(params.banned_token_ids)
        self._min_tokens = params.min_tokens
        self._generated = 0
        self.over = False
        self.error = ""
        self.forced: int | None = None
        self.words: Int32Array = np.empty(0, np.int32)
        self._look()

    def advance(self, token: int) -> None:
        """Take the next token of the answer."""
        self._generated += 1
        if not self._matcher.consume_token(token):
            self.error = self._matcher.get_error() or f"the token {token} is not one it allows"
            return
        self._look()

    def copy(self) -> Guide:
        """The same state, for another sample."""
        other = copy.copy(self)
        other._matcher = self._matcher.deep_copy()
        return other

    def _look(self) -> None:
        """Find out what may come next. Masks are integers of V bits: an operation is a pass over a few KiB."""
        matcher = self._matcher
        text = int.from_bytes(matcher.compute_bitmask(), "little") & _every(self._vocab_size) & ~self._eos
        if matcher.is_error():
            self.error = matcher.get_error() or "it became too complex"
            return
        may_end = matcher.is_accepting()
        if not text and not may_end:
            self.error = "nothing may follow what was generated"
            return
        text &= self._allowed
        kept_away = text & ~self._stops if self._generated < self._min_tokens else 0
        ends = self._ends & self._allowed if may_end else 0
        mask = kept_away or (text | ends)  # the grammar's own end goes before min_tokens
        if not text and may_end:
            self.over = True
        elif not mask:
            self.error = "the ids that may be drawn leave none that it allows"
        self.forced = mask.bit_length() - 1 if mask.bit_count() == 1 else None
        size = -(-self._vocab_size // 32) * 4
        self.words = np.frombuffer(mask.to_bytes(size, "little"), np.int32)


class GuideMaker:
    """Builds guides off the engine's thread. What comes here was compiled before, within its time, by the checker.

    Args:
        vocabulary: from the logits' width to the model's, and its encoder; asked once, when the first grammar comes.
        vocab_size: width of the logits.
    """

    def __init__(self, vocabulary: VocabularySource, vocab_size: int):
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self._tokenizer: Any = None
        self._matchers: OrderedDict[str, Any] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "octavo-grammar")
        self._open: dict[int, tuple[EngineRequest, Future[Guide]]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, request: EngineRequest) -> None:
        """Start on a request's guide; `arrived` will bring it."""
        self._open[request.handle] = request, self._thread.submit(self._make, request)

    def abort(self, handle: int) -> bool:
        """Drop a request. False if it is not here."""
        return self._open.pop(handle, None) is not None

    def arrived(self, seconds: float = 0.0) -> list[tuple[EngineRequest, Guide | str]]:
        """Requests whose guides are built, or why they could not be, in the order in which they came.

        Args:
            seconds: how long to wait for the first.
        """
        if seconds and self._open:
            wait([future for _, future in self._open.values()], seconds, return_when=FIRST_COMPLETED)
        done = [handle for handle, (_, future) in self._open.items() if future.done()]
        taken = [self._open.pop(handle) for handle in done]
        return [
            (request, future.result() if future.exception() is None else str(future.exception()))
            for request, future in taken
        ]

    def close(self) -> None:
        """Let go of the thread."""
        self._open.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _make(self, request: EngineRequest) -> Guide:
        from llguidance import LLMatcher

        if self._tokenizer is None:
            self._tokenizer = ll_tokenizer(*self._vocabulary(self._vocab_size))
        matcher = self._matchers.get(request.grammar)
        if matcher is None:
            matcher = LLMatcher(self._tokenizer, request.grammar, log_level=0, limits=parser_limits())
            self._matchers[request.grammar] = matcher
            if len(self._matchers) > _CACHED_GRAMMARS:
                self._matchers.popitem(last=False)
        self._matchers.move_to_end(request.grammar)
        return Guide(matcher.deep_copy(), request, self._vocab_size)


def _outcome(future: Future[Guide]) -> Guide | str:
    error = future.exception()
    return future.result() if error is None else str(error) or type(error).__name__


def _bits(ids: Iterable[int]) -> int:
    mask = 0
    for token_id in ids:
        mask |= 1 << token_id
    return mask


@functools.lru_cache(maxsize=4)
def _every(vocab_size: int) -> int:
    return (1 << vocab_size) - 1
