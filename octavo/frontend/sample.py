"""One request's output as it grows: its samples, their text, and the updates that tell of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from octavo.frontend.detokenizer import Detokenizer, detokenizer
from octavo.frontend.stop_strings import StopChecker, stop_automaton
from octavo.frontend.tokenizer import Tokenizer
from octavo.request import (
    CompletionOutput,
    EngineRequest,
    Finished,
    FinishReason,
    RequestMetrics,
    RequestOutput,
    SamplingParams,
    TokenLogprobs,
)


def _no_text(token_id: int) -> str:
    return ""


class OpenRequest:
    """A request and what came of it so far.

    Attributes:
        num_open: samples that have not finished.
        scheduled_time, first_token_time, finish_time: monotonic seconds; 0 until then.
        prompt_logprobs: for each prompt token, None for the first; None unless asked for.
        embedding: float32 values, little-endian; b"" unless asked for.
    """

    __slots__ = (
        "arrival_time", "embedding", "finish_time", "first_token_time", "handle", "num_cached_tokens", "num_open",
        "params", "prompt", "prompt_logprobs", "prompt_token_ids", "request_id", "samples", "scheduled_time",
    )  # fmt: skip

    def __init__(self, request: EngineRequest, prompt: str | None, tokenizer: Tokenizer | None):
        self.handle = request.handle
        self.request_id = request.request_id
        self.params = request.params
        self.prompt = prompt
        self.prompt_token_ids = request.prompt_token_ids
        self.arrival_time = request.arrival_time
        self.scheduled_time = self.first_token_time = self.finish_time = 0.0
        self.num_cached_tokens = 0
        self.embedding = b""
        self.num_open = request.params.n
        self.prompt_logprobs: list[TokenLogprobs | None] | None = (
            None if request.params.prompt_logprobs is None else [None]
        )
        self.samples = [Sample(self, index, request.params, tokenizer) for index in range(request.params.n)]

    def add_prompt_logprobs(self, start: int, entries: Sequence[TokenLogprobs]) -> None:
        """Logprobs of prompt tokens from `start` on; what comes twice (after a preemption) replaces what was there."""
        if self.prompt_logprobs is not None:
            self.prompt_logprobs[start : start + len(entries)] = entries

    def metrics(self) -> RequestMetrics:
        """Times since the arrival; those that have not come yet are 0, the total is up to now."""
        return RequestMetrics(
            queue_time=max(0.0, self.scheduled_time - self.arrival_time) if self.scheduled_time else 0.0,
            time_to_first_token=self.first_token_time - self.arrival_time if self.first_token_time else 0.0,
            total_time=(self.finish_time or time.monotonic()) - self.arrival_time,
        )

    def result(self) -> RequestOutput:
        """The request as it stands now, every sample with all its text."""
        return self.output([sample.completion() for sample in self.samples])

    def release(self) -> None:
        """Let go of the samples, which know it: nobody asks for results any more."""
        self.samples = []

    def output(self, outputs: list[CompletionOutput]) -> RequestOutput:
        """A `RequestOutput` with these samples."""
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            outputs=outputs,
            finished=self.num_open == 0,
            prompt_logprobs=self.prompt_logprobs,
            num_cached_tokens=self.num_cached_tokens,
            metrics=self.metrics(),
        )


class Sample:
    """One sample's way from tokens to text.

    Attributes:
        token_ids: all that were generated, those that a stop string cut off included.
        logprobs: of `token_ids` from the first on, as far as their text is out; None unless asked for.
        pieces: the text so far, in pieces.
        finish_reason, stop_reason, error: how it ended; None and "" while it runs.
        cumulative_logprob: the engine's word for it, which comes with the end of a beam.
        plain: neither stop strings, nor logprobs, nor an end to look after: a token is only appended and decoded.
        last_time: of its newest token, `time.monotonic()`; 0 before the first.
        ending, last_ids: the engine's word that this step ends the sample, and the step's tokens of it.
    """

    __slots__ = (
        "_detokenizer", "_held", "_num_chars", "_params", "_stop", "cumulative_logprob", "ending", "error",
        "finish_reason", "index", "last_ids", "last_time", "logprobs", "pieces", "plain", "push", "request",
        "stop_reason", "token_ids",
    )  # fmt: skip

    def __init__(self, request: OpenRequest, index: int, params: SamplingParams, tokenizer: Tokenizer | None):
        self.request = request
        self.index = index
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] | None = None if params.logprobs is None else []
        self.pieces: list[str] = []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.error = ""
        self.cumulative_logprob: float | None = None
        self.ending: Finished | None = None
        self.last_ids: list[int] = []
        self.last_time = 0.0
        self._params = params
        self._stop: StopChecker | None = None  # made with the first token: waiting requests shall be small
        self._num_chars = 0  # decoded, held back or not
        self._held: list[tuple[int, TokenLogprobs]] = []  # logprobs not out yet, and where their token's text begins
        self._detokenizer: Detokenizer | None = None
        if tokenizer is not None and params.detokenize:
            continuation = _continues_text(tokenizer, request.prompt_token_ids)
            self._detokenizer = detokenizer(
                tokenizer, params.skip_special_tokens, continuation, params.kept_special_tokens
            )
        self.push: Callable[[int], str] = self._detokenizer.push if self._detokenizer is not None else _no_text
        self.plain = self.logprobs is None and not (params.stop and self._detokenizer is not None)

    @property
    def text(self) -> str:
        """All text so far."""
        if len(self.pieces) > 1:
            self.pieces[:] = ["".join(self.pieces)]
        return self.pieces[0] if self.pieces else ""

    def take(self, token_id: int, entry: TokenLogprobs | None) -> Update:
        """One more token. It ends the sample if it completes a stop string."""
        text, released = self._advance(token_id, entry, self.push(token_id))
        return self._update(text, [token_id], released)

    def will_end(self, finished: Finished) -> None:
        """The engine says that the tokens of this step are the sample's last."""
        self.ending = finished
        self.plain = False

    def end(self, entries: list[TokenLogprobs]) -> Update:
        """Take `last_ids` and what was held back, and finish as the engine said.

        A token that ended the answer gives no text unless stops are to be in the output. A stop string that only the
        last tokens complete still counts.
        """
        ending, token_ids, self.last_ids = self.ending, self.last_ids, []
        if ending is None:
            raise RuntimeError("end() without will_end()")
        self.cumulative_logprob = ending.cumulative_logprob
        texts, released = [], []
        for rank, token_id in enumerate(token_ids):
            silent = ending.reason == "stop" and not ending.complete and rank == len(token_ids) - 1
            shown = "" if silent and not self._params.include_stop_str_in_output else self.push(token_id)
            text, entries_out = self._advance(token_id, entries[rank] if rank < len(entries) else None, shown)
            texts.append(text)
            released += entries_out
        if self.finish_reason is None:
            text, entries_out = self._flush()
            texts.append(text)
            released += entries_out
        if self.finish_reason is None:
            self.finish_reason, self.stop_reason, self.error = ending.reason, ending.stop_reason, ending.error
        return self._update("".join(texts), token_ids, released)

    def completion(self) -> CompletionOutput:
        """The sample as it stands."""
        return CompletionOutput(
            index=self.index,
            text=self.text,
            token_ids=list(self.token_ids),
            logprobs=None if self.logprobs is None else list(self.logprobs),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            error=self.error,
            cumulative_logprob=self._sum_of_logprobs(),
        )

    def _sum_of_logprobs(self) -> float | None:
        if self.cumulative_logprob is not None or self.logprobs is None:
            return self.cumulative_logprob
        return sum(entry.logprob for entry in self.logprobs)

    def _advance(self, token_id: int, entry: TokenLogprobs | None, text: str) -> tuple[str, list[TokenLogprobs]]:
        """Add a token with its text; return the text and logprobs that are out now."""
        self.token_ids.append(token_id)
        if entry is not None and self.finish_reason is None:
            self._held.append((self._num_chars, entry))
        self._num_chars += len(text)
        if self._params.stop and self._detokenizer is not None and len(self.token_ids) > self._params.min_tokens:
            text = self._check_stop(text)
        return text, self._release()

    def _check_stop(self, text: str) -> str:
        if self._stop is None:
            self._stop = StopChecker(stop_automaton(self._params.stop), self._params.include_stop_str_in_output)
        already_over = self._stop.matched is not None
        before = self._num_chars - len(text) - self._stop.num_held
        text = self._stop.feed(text)
        if self._stop.matched is not None and not already_over:
            self.finish_reason, self.stop_reason = "stop", self._stop.matched
            self._num_chars = before + len(text)
        return text

    def _release(self) -> list[TokenLogprobs]:
        """Logprobs of tokens whose text has begun to come out; after a stop string, those cut off are dropped."""
        if not self._held:
            return []
        over = self.finish_reason is not None
        num_held = self._stop.num_held if self._stop is not None else 0
        out = self._num_chars - num_held
        count = sum(begin < out or (not num_held and not over) for begin, _ in self._held)
        released = [entry for _, entry in self._held[:count]]
        self._held = [] if over else self._held[count:]
        return released

    def _flush(self) -> tuple[str, list[TokenLogprobs]]:
        """What was held back, now that no more tokens come."""
        text = self._detokenizer.flush() if self._detokenizer is not None else ""
        self._num_chars += len(text)
        if self._stop is not None:
            text = self._check_stop(text)
            if self._stop.matched is None:
                text += self._stop.flush()
        return text, self._release()

    def _update(self, text: str, token_ids: list[int], released: list[TokenLogprobs]) -> Update:
        self.pieces.append(text)
        if self.logprobs is not None:
            self.logprobs += released
        update = Update(self.request.handle, self, text, token_ids)
        update.logprobs = None if self.logprobs is None else released
        update.finish_reason, update.stop_reason, update.error = self.finish_reason, self.stop_reason, self.error
        return update


class Update:
    """What a step added to one sample.

    Attributes:
        handle: of the request.
        sample: what it adds to.
        text: new text, possibly "" while characters or a possible stop string are incomplete.
        token_ids: new token ids.
        logprobs: of the tokens whose text is out now, None unless asked for. With stop strings they come when the
            text does, so a delta's logprobs need not be its token ids'.
        finish_reason, stop_reason, error: set in the sample's last update.
        finished: whether this is the request's last update.
    """

    __slots__ = (
        "error", "finish_reason", "finished", "handle", "logprobs", "sample", "stop_reason", "text", "token_ids",
    )  # fmt: skip

    def __init__(self, handle: int, sample: Sample, text: str, token_ids: list[int]):
        self.handle = handle
        self.sample = sample
        self.text = text
        self.token_ids = token_ids
        self.logprobs: list[TokenLogprobs] | None = None
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.error = ""
        self.finished = False

    @property
    def index(self) -> int:
        """Which of the request's samples."""
        return self.sample.index

    @property
    def request(self) -> OpenRequest:
        return self.sample.request

    def result(self) -> RequestOutput:
        """The whole request as it stands now, every sample with all its text."""
        return self.sample.request.result()

    def delta(self) -> RequestOutput:
        """The request with only what this update adds."""
        added = CompletionOutput(
            index=self.sample.index,
            text=self.text,
            token_ids=self.token_ids,
            logprobs=self.logprobs,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            error=self.error,
        )
        return self.sample.request.output([added])


def _continues_text(tokenizer: Tokenizer, prompt_token_ids: Sequence[int]) -> bool:
    """Whether the prompt shows text before the answer, so that a leading space belongs to the answer."""
    if tokenizer.codec is None or not tokenizer.codec.strip_leading_space:
        return False
    return any(not tokenizer.is_special(token_id) for token_id in reversed(prompt_token_ids))
