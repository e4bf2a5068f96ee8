"""`OutputProcessor`: what a step brought, as text for the requests it belongs to.

The plain case (no stop strings, no logprobs) costs a look-up and one small object a token; everything else goes
through `Sample.take`. Nothing is built that nobody asked for: whole results are made by `Update.result`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from octavo.frontend.sample import OpenRequest, Sample, Update
from octavo.frontend.tokenizer import Tokenizer
from octavo.request import EngineRequest, EngineStats, Finished, StepOutputs, TokenLogprobs


@dataclass(slots=True)
class ProcessedStep:
    """What a step means for the requests.

    Attributes:
        updates: in the order of the step's tokens; a sample that ends has exactly one update that says so, its last.
        aborts: (handle, index) of samples that a stop string ended; the engine still runs them and must be told.
        stats: the engine's, if the step brought any.
        time: when it came, `time.monotonic()`.
        previous: for each token, when its sample's token before it came; 0 for the first.
    """

    updates: list[Update] = field(default_factory=list)
    aborts: list[tuple[int, int]] = field(default_factory=list)
    stats: EngineStats | None = None
    time: float = 0.0
    previous: list[float] = field(default_factory=list)


class OutputProcessor:
    """Keeps the open requests of a front end and turns steps into updates. Not thread-safe.

    Args:
        tokenizer: None gives token ids without text.
    """

    def __init__(self, tokenizer: Tokenizer | None):
        self._tokenizer = tokenizer
        self._open: dict[int, OpenRequest] = {}

    @property
    def num_open(self) -> int:
        """Requests that have not finished."""
        return len(self._open)

    def add(self, request: EngineRequest, prompt: str | None = None) -> OpenRequest:
        """Take a request before the engine gets it.

        Args:
            prompt: its text, for the result; None where there is none.

        Raises:
            ValueError: the handle is that of an open request.
        """
        if request.handle in self._open:
            raise ValueError(f"handle {request.handle} is open")
        opened = self._open[request.handle] = OpenRequest(request, prompt, self._tokenizer)
        return opened

    def process(self, outputs: StepOutputs) -> ProcessedStep:
        """Turn one step's outputs into updates. Rows of requests that are not open (any more) are dropped."""
        step = ProcessedStep(stats=outputs.stats)
        requests, updates = self._open, step.updates
        ending = self._note(outputs)
        entries = _by_sample(outputs) if outputs.logprobs else {}
        step.time = now = time.monotonic()
        previous = step.previous
        for handle, index, token_id in zip(outputs.handles, outputs.indices, outputs.tokens, strict=True):
            request = requests.get(handle)
            if request is None:
                continue
            if not request.first_token_time:
                request.first_token_time = now
            sample = request.samples[index]
            previous.append(sample.last_time)
            sample.last_time = now
            if sample.plain:
                sample.token_ids.append(token_id)
                text = sample.push(token_id)
                sample.pieces.append(text)
                updates.append(Update(handle, sample, text, [token_id]))
            elif sample.ending is not None:
                sample.last_ids.append(token_id)
            elif sample.finish_reason is None:
                scored = entries.get((handle, index))
                updates.append(sample.take(token_id, scored.pop(0) if scored else None))
                if updates[-1].finish_reason is not None:
                    step.aborts.append((handle, index))
                    self._close(request, updates[-1], now)
        for sample in ending:
            updates.append(sample.end(entries.get((sample.request.handle, sample.index), [])))
            self._close(sample.request, updates[-1], now)
        return step

    def abort(self, handle: int, *, error: str = "") -> list[Update]:
        """Forget a request; its open samples end with "abort", or with "error" where there is one."""
        request = self._open.get(handle)
        if request is None:
            return []
        updates, now = [], time.monotonic()
        for sample in request.samples:
            if sample.finish_reason is None:
                reason = Finished(handle, sample.index, "error" if error else "abort", None, error)
                sample.will_end(reason)
                updates.append(sample.end([]))
                self._close(request, updates[-1], now)
        return updates

    def fail_all(self, error: str) -> list[Update]:
        """End every open request with an error, as when the engine died."""
        return [update for handle in list(self._open) for update in self.abort(handle, error=error)]

    def _note(self, outputs: StepOutputs) -> list[Sample]:
        """Note what came beside tokens; return the samples that this step ends."""
        for started in outputs.started:
            request = self._open.get(started.handle)
            if request is not None and not request.scheduled_time:
                request.scheduled_time = started.scheduled_time
                request.num_cached_tokens = started.num_cached_tokens
        for scored in outputs.prompt_logprobs:
            request = self._open.get(scored.handle)
            if request is not None:
                request.add_prompt_logprobs(scored.start, scored.entries)
        for pooled in outputs.pooled:
            request = self._open.get(pooled.handle)
            if request is not None:
                request.embedding = pooled.values
        ending = []
        for finished in outputs.finished:
            request = self._open.get(finished.handle)
            if request is not None and request.samples[finished.index].finish_reason is None:
                request.samples[finished.index].will_end(finished)
                ending.append(request.samples[finished.index])
        return ending

    def _close(self, request: OpenRequest, update: Update, now: float) -> None:
        request.num_open -= 1
        if request.num_open == 0:
            request.finish_time = now
            update.finished = True
            del self._open[request.handle]


def _by_sample(outputs: StepOutputs) -> dict[tuple[int, int], list[TokenLogprobs]]:
    entries: dict[tuple[int, int], list[Any]] = {}
    for row in outputs.logprobs:
        entries.setdefault((row.handle, row.index), []).append(row.entry)
    return entries
