"""A model without numbers for beams: logprobs are a hash of what a row's pages say."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np

from octavo.plan import LogprobArrays, StepPlan, StepResult
from octavo.request import EngineRequest, SamplingParams
from tests.scheduler.driver import VOCAB, Driver, Got
from tests.scheduler.fake_runner import FakeRunner, Pipeline


def next_logprobs(text: list[int]) -> np.ndarray:
    """[VOCAB] float32, a peaked distribution that only the whole text decides."""
    seed = int.from_bytes(hashlib.sha256(repr(text).encode()).digest()[:8], "little")
    logits = np.random.default_rng(seed).normal(0, 2, VOCAB)
    return (logits - np.log(np.exp(logits).sum())).astype(np.float32)


class BeamRunner(FakeRunner):
    """As the fake runner, but rows that want more logprobs than it has get them from the hash.

    Attributes:
        texts: every text that a beam had.
    """

    texts: set[tuple[int, ...]]

    def run(self, plan: StepPlan) -> StepResult:
        result = super().run(plan)
        sampled = [i for i, sample in enumerate(plan.sample.tolist()) if sample]
        width = max([self.rows[plan.rows[i]].params.logprobs or 0 for i in sampled] + [4])
        ids = np.zeros((len(sampled), width), np.int32)
        values = np.zeros((len(sampled), width), np.float32)
        for place, i in enumerate(sampled):
            row = int(plan.rows[i])
            if self.rows[row].params.use_beam_search:
                text = self._read(row, int(plan.context_lens[i] + plan.query_lens[i]))
                self.texts.add(tuple(text))
                logprobs = next_logprobs(text)
                ids[place] = np.argsort(-logprobs, kind="stable")[:width]
                values[place] = logprobs[ids[place]]
            elif result.logprobs is not None:
                ids[place, :4], values[place, :4] = result.logprobs.top_ids[place], result.logprobs.top_logprobs[place]
        if result.logprobs is None:
            return result
        arrays = LogprobArrays(result.logprobs.chosen, result.logprobs.ranks, ids, values)
        return dataclasses.replace(result, logprobs=arrays)


class BeamDriver(Driver):
    """Collects the sums of logprobs too, and counts the pages in use."""

    def __init__(self, **config: Any):
        super().__init__(**config)
        self.runner = BeamRunner(
            num_pages=self.config.num_pages,
            page_size=self.config.page_size,
            max_num_seqs=self.config.max_num_seqs,
            max_model_len=self.config.max_model_len,
            vocab_size=VOCAB,
        )
        self.runner.texts = set()
        self.pipeline = Pipeline(self.runner)
        self.sums: dict[tuple[int, int], float] = {}
        self.most_pages = 0

    def _collect(self, outputs: Any) -> None:
        super()._collect(outputs)
        for end in outputs.finished:
            if end.cumulative_logprob is not None:
                self.sums[end.handle, end.index] = end.cumulative_logprob
        self.most_pages = max(self.most_pages, self.config.num_pages - outputs.stats.num_free_pages)

    def beams(self, prompt: list[int], width: int, handle: int = 0, **options: Any) -> EngineRequest:
        return self.add(prompt, handle, n=width, use_beam_search=True, temperature=0.0, **options)


def alone(request: EngineRequest) -> Got:
    """The request by itself, in turn, with room for everything."""
    driver = BeamDriver(
        num_pages=600,
        max_num_seqs=64,
        max_num_batched_tokens=4096,
        async_scheduling=False,
        enable_prefix_caching=False,
    )
    driver.submit(request)
    return driver.run()[request.handle]


def exhaustive(request: EngineRequest) -> list[tuple[float, list[int]]]:
    """The rule of the search in its plainest form: lists of whole texts, sorted anew at every length."""
    params: SamplingParams = request.params
    stops = {*params.stop_token_ids, *(() if params.ignore_eos else request.eos_token_ids)}
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for length in range(1, (params.max_tokens or 0) + 1):
        options = []
        for score, tokens in beams:
            logprobs = next_logprobs(request.prompt_token_ids + tokens)
            barred = stops if length <= params.min_tokens else set()
            options += [(score + float(logprobs[t]), [*tokens, t]) for t in range(VOCAB) if t not in barred]
        options.sort(key=lambda option: -option[0])
        over = length == params.max_tokens
        for score, tokens in options[: params.n]:
            if tokens[-1] in stops or over:
                ended.append((score / length**params.length_penalty, tokens))
        ended = sorted(ended, key=lambda end: -end[0])[: params.n]
        beams = [option for option in options if option[1][-1] not in stops][: params.n]
        if over:
            break
        if len(ended) == params.n:
            best = length
            if params.early_stopping == "never" and params.length_penalty > 0:
                best = params.max_tokens or 0
            if params.early_stopping is True or beams[0][0] / best**params.length_penalty <= ended[-1][0]:
                break
    return ended
