"""`Guide`: where a sample stands in its grammar, and what may come next. `GuideMaker` makes them in the engine."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.grammar.vocabulary import Vocabulary, ll_tokenizer, parser_limits
from octavo.plan import Int32Array
from octavo.request import EngineRequest

VocabularySource = Callable[[int], tuple[Vocabulary, Callable[[str], list[int]] | None]]
Bits = npt.NDArray[np.uint32]
_CACHED_GRAMMARS = 128
_TOGETHER = 4  # fewer masks are found sooner one after the other


class Masks:
    """What several grammars allow next, found side by side: llguidance's threads hold no lock of Python's.

    Args:
        vocab_size: width of the logits.
    """

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self._executor: Any = None

    def of(self, matchers: Sequence[Any]) -> npt.NDArray[np.uint32]:
        """[G, (V + 31) // 32], bit i of word w allows the token 32 w + i. Matchers that fail tell it themselves."""
        from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par

        masks = np.zeros((len(matchers), -(-self.vocab_size // 32)), np.int32)
        if len(matchers) < _TOGETHER:
            for i, matcher in enumerate(matchers):
                fill_next_token_bitmask(matcher, masks, i)
        else:
            if self._executor is None:
                from llguidance import LLExecutor

                self._executor = LLExecutor()
            fill_next_token_bitmask_par(self._executor, [(each, i) for i, each in enumerate(matchers)], masks)
        return masks.view(np.uint32)


class Guide:
    """One sample's state: a function of the tokens it generated, so it outlives preemption.

    Attributes:
        words: int32 [(V + 31) // 32], bit i of word w allows the token 32 w + i next.
        over: the answer is complete and nothing may follow it.
        forced: the only token that may come next, if there is but one.
        error: why the grammar cannot be kept any further; "" while it can.
    """

    def __init__(self, matcher: Any, request: EngineRequest, masks: Masks):
        params, size = request.params, masks.vocab_size
        self._matcher = matcher
        self._masks = masks
        allowed: Bits | None = None
        if params.allowed_token_ids is not None or params.banned_token_ids:
            allowed = _every(size) if params.allowed_token_ids is None else _bits(params.allowed_token_ids, size)
            allowed = allowed & ~_bits(params.banned_token_ids, size)
        ends = _bits(request.eos_token_ids, size)
        self._text = _every(size) & ~ends
        self._allowed = allowed
        self._ends = np.zeros_like(ends) if params.ignore_eos else ends if allowed is None else ends & allowed
        self._other_than_stops = ~_bits(params.stop_token_ids, size)
        self._min_tokens = params.min_tokens
        self._generated = 0
        self.over = False
        self.error = ""
        self.forced: int | None = None
        self.words: Int32Array = np.empty(0, np.int32)
        self._look(masks.of([matcher])[0])

    def advance_all(self, guides: Sequence[Guide], tokens: Sequence[int]) -> None:
        """Take the next token of each answer; this guide is any of them."""
        for guide, token in zip(guides, tokens, strict=True):
            guide._take(token)
        able = [guide for guide in guides if not guide.error]
        for guide, mask in zip(able, self._masks.of([guide._matcher for guide in able]), strict=True):
            guide._look(mask)

    def copy(self) -> Guide:
        """The same state, for another sample."""
        other = copy.copy(self)
        other._matcher = self._matcher.deep_copy()
        return other

    def _take(self, token: int) -> None:
        self._generated += 1
        if not self._matcher.consume_token(token):
            self.error = self._matcher.get_error() or f"the token {token} is not one it allows"

    def _look(self, mask: Bits) -> None:
        """Find out what may come next of what the grammar allows."""
        matcher = self._matcher
        if matcher.is_error():
            self.error = matcher.get_error() or "it became too complex"
            return
        may_end = matcher.is_accepting()
        words = mask & self._text  # its own memory: a mask is a row of what is as large as the batch
        has_text = bool(np.count_nonzero(words))
        if not has_text and not may_end:
            self.error = "nothing may follow what was generated"
            return
        if self._allowed is not None:
            words &= self._allowed
            has_text = bool(np.count_nonzero(words))
        kept_away = words & self._other_than_stops if self._generated < self._min_tokens else None
        if kept_away is not None and np.count_nonzero(kept_away):
            words = kept_away
        elif may_end:  # the grammar's own end goes before min_tokens
            words |= self._ends
        if not has_text and may_end:
            self.over = True
        elif not np.count_nonzero(words):
            self.error = "the ids that may be drawn leave none that it allows"
        self.forced = _only(words)
        self.words = words.view(np.int32)


class GuideMaker:
    """Builds guides off the engine's thread. What comes here was compiled before, within its time, by the checker.

    Args:
        vocabulary: from the logits' width to the model's, and its encoder; asked once, when the first grammar comes.
        vocab_size: width of the logits.
    """

    def __init__(self, vocabulary: VocabularySource, vocab_size: int):
        self._vocabulary = vocabulary
        self._masks = Masks(vocab_size)
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
            self._tokenizer = ll_tokenizer(*self._vocabulary(self._masks.vocab_size))
        matcher = self._matchers.get(request.grammar)
        if matcher is None:
            matcher = LLMatcher(self._tokenizer, request.grammar, log_level=0, limits=parser_limits())
            self._matchers[request.grammar] = matcher
            if len(self._matchers) > _CACHED_GRAMMARS:
                self._matchers.popitem(last=False)
        self._matchers.move_to_end(request.grammar)
        return Guide(matcher.deep_copy(), request, self._masks)


def _bits(ids: Iterable[int], vocab_size: int) -> Bits:
    """Words in which the bits of these ids are set; ids outside the vocabulary are none."""
    words = np.zeros(-(-vocab_size // 32), np.uint32)
    for token_id in ids:
        if 0 <= token_id < vocab_size:
            words[token_id >> 5] |= np.uint32(1 << (token_id & 31))
    return words


@functools.lru_cache(maxsize=4)
def _every(vocab_size: int) -> Bits:
    words = np.full(-(-vocab_size // 32), ~np.uint32(0))
    if vocab_size % 32:
        words[-1] = (1 << vocab_size % 32) - 1
    words.flags.writeable = False
    return words


def _only(words: Bits) -> int | None:
    """The id whose bit is the only one, if there is just one."""
    if np.count_nonzero(words) != 1:
        return None
    at = int(np.flatnonzero(words)[0])
    bits = int(words[at])
    return 32 * at + bits.bit_length() - 1 if bits & (bits - 1) == 0 else None
