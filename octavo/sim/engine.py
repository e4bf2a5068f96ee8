"""`SimEngine`: the real scheduler over a runner that computes nothing. Its answer is the prompt, over and over."""

from __future__ import annotations

import dataclasses
import time
from typing import Literal

import msgspec
import numpy as np

from octavo.config import EngineConfig
from octavo.engine.info import EngineInfo
from octavo.engine.phases import Progress
from octavo.errors import InvalidRequestError, ModelFileError
from octavo.plan import LogprobArrays, StepPlan, StepResult
from octavo.request import EngineRequest, EngineStats, StepOutputs
from octavo.scheduler import Scheduler, SchedulerConfig

_TOP = 20  # the logprobs that a sample brings
_HIDDEN = 32  # length of an embedding


class SimOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to simulate.

    Attributes:
        step_seconds: least time a step takes.
        startup_seconds: time that loading takes.
        num_pages: size of the KV pool, in pages of `--block-size` tokens.
        fault: what happens at step `fault_step` (counted from 1), or on starting: "raise" an exception, "hang" for
            good, "fail" the rows of that step as for numbers that are not finite, "startup" for a model that is
            corrupt.
        scripted: take structured_outputs and keep them not; the prompts are such that answers are as they ask.
    """

    step_seconds: float = 0.0
    startup_seconds: float = 0.0
    num_pages: int = 4096
    vocab_size: int = 320
    fault: Literal["", "raise", "hang", "fail", "startup"] = ""
    fault_step: int = 1
    scripted: bool = False


class SimEngine:
    """Same interface as `octavo.engine.core.Engine`: scheduling, paging, prefix caching, n and aborts are real."""

    def __init__(self, config: EngineConfig, progress: Progress | None = None, options: SimOptions | None = None):
        self._options = options or SimOptions()
        self._start(progress)
        scheduler, page_size = config.scheduler, config.cache.block_size or 16
        self.info = EngineInfo(
            model=config.model.model,
            architecture="simulated",
            device="none",
            dtype="none",
            quantization="none",
            vocab_size=self._options.vocab_size,
            hidden_size=_HIDDEN,
            max_model_len=config.model.max_model_len or min(4096, self._options.num_pages * page_size),
            num_pages=self._options.num_pages,
            page_size=page_size,
            max_num_seqs=scheduler.max_num_seqs or 128,
            max_num_batched_tokens=scheduler.max_num_batched_tokens or 8192,
        )
        self._scheduler = Scheduler(
            SchedulerConfig(
                max_num_seqs=self.info.max_num_seqs,
                max_num_batched_tokens=self.info.max_num_batched_tokens,
                max_model_len=self.info.max_model_len,
                num_pages=self.info.num_pages,
                page_size=page_size,
                policy=scheduler.scheduling_policy,
                enable_prefix_caching=config.cache.enable_prefix_caching,
                async_scheduling=False,
                max_num_queued_reqs=scheduler.max_num_queued_reqs,
            )
        )
        self._runner = SimRunner(self.info)
        self._due = 0.0

    def _start(self, progress: Progress | None) -> None:
        if self._options.fault == "startup":
            raise ModelFileError("The simulated model is corrupt.", fix="Choose another fault.", param="model")
        steps = 10
        for done in range(steps if self._options.startup_seconds else 0):
            time.sleep(self._options.startup_seconds / steps)
            if progress is not None:
                progress("pretend to load", (done + 1) / steps)

    def step(self) -> StepOutputs | None:
        """Run the next plan; None if there is none."""
        plan = self._scheduler.plan()
        if plan is None:
            return None
        result = self._runner.run(plan)
        if self._options.fault and plan.step + 1 == self._options.fault_step:
            result = self._go_wrong(result, len(plan.rows))
        if self._options.step_seconds:
            time.sleep(max(0.0, self._due - time.monotonic()))
            self._due = time.monotonic() + self._options.step_seconds
        return self._scheduler.commit(result)

    def _go_wrong(self, result: StepResult, num_rows: int) -> StepResult:
        if self._options.fault == "hang":
            while True:
                time.sleep(60.0)
        if self._options.fault == "raise":
            raise RuntimeError("the simulated step failed")
        return dataclasses.replace(result, failed=tuple(range(num_rows)))

    def add(self, request: EngineRequest) -> None:
        """Queue a request; errors as of the real engine. There are no logits, so nothing to keep a grammar with."""
        if request.grammar and self._options.scripted:
            request = msgspec.structs.replace(request, grammar="")
        if request.grammar:
            raise InvalidRequestError(
                "A simulated engine keeps no structured_outputs.", fix="Leave it out.", param="structured_outputs"
            )
        self._scheduler.add(request)

    def abort(self, handle: int, index: int | None = None) -> bool:
        """End a request, or one sample of it."""
        return self._scheduler.abort(handle, index)

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def stats(self) -> EngineStats:
        return self._scheduler.stats()

    def check(self) -> None:
        """Verify the pool's invariants."""
        self._scheduler.check()

    def close(self) -> None:
        """There is nothing to free."""


class SimRunner:
    """Keeps token ids in pages and reads the next token out of them, through the plan's block tables alone."""

    def __init__(self, info: EngineInfo):
        self._page_size = info.page_size
        width = -(-info.max_model_len // info.page_size)
        self._pages = np.zeros((info.num_pages, info.page_size), np.int32)
        self._table = np.zeros((info.max_num_seqs, width), np.int32)
        self._num_prompt = np.ones(info.max_num_seqs, np.int32)
        self._last = np.zeros(info.max_num_seqs, np.int32)
        self._vocab_size = info.vocab_size

    def run(self, plan: StepPlan) -> StepResult:
        """Sample for every row that asks: token i of an answer is token i of the prompt, modulo its length."""
        self._apply(plan)
        ends = plan.context_lens + plan.query_lens
        rows, ends = plan.rows[plan.sample], ends[plan.sample]
        num_prompt = self._num_prompt[rows]
        where = (ends - num_prompt) % num_prompt
        tokens = self._pages[self._table[rows, where // self._page_size], where % self._page_size]
        self._last[rows] = tokens
        scores = tuple(self._logprobs(scored.targets) for scored in plan.prompt_logprobs)
        pooled = tuple(self._embedding(plan, entry.index) for entry in plan.pooling if entry.last)
        return StepResult(plan.step, tokens, self._logprobs(tokens), scores, pooled=pooled)

    def _embedding(self, plan: StepPlan, index: int) -> np.ndarray:
        """How often the prompt has tokens of each remainder."""
        row, where = plan.rows[index], np.arange(plan.context_lens[index] + plan.query_lens[index])
        tokens = self._pages[self._table[row, where // self._page_size], where % self._page_size]
        return np.bincount(tokens % _HIDDEN, minlength=_HIDDEN).astype(np.float32)

    def _apply(self, plan: StepPlan) -> None:
        for new in plan.new_rows:
            self._num_prompt[new.row] = new.num_prompt_tokens
        at = 0
        for row, start, count in zip(
            plan.block_rows.tolist(), plan.block_starts.tolist(), plan.block_counts.tolist(), strict=True
        ):
            self._table[row, start : start + count] = plan.block_pages[at : at + count]
            at += count
        for source, destination in plan.copy_pages.tolist():
            self._pages[destination] = self._pages[source]
        known = ~plan.from_host
        self._write(plan.rows[known], plan.context_lens[known], self._last[plan.rows[known]])
        if len(plan.token_ids):
            given = plan.from_host
            counts = plan.query_lens[given]
            starts = np.repeat(plan.context_lens[given] - np.cumsum(counts) + counts, counts)
            self._write(np.repeat(plan.rows[given], counts), starts + np.arange(len(starts)), plan.token_ids)

    def _write(self, rows: np.ndarray, positions: np.ndarray, tokens: np.ndarray) -> None:
        self._pages[self._table[rows, positions // self._page_size], positions % self._page_size] = tokens

    def _logprobs(self, tokens: np.ndarray) -> LogprobArrays:
        """The token itself is the likeliest, and its neighbours follow at a distance of one each."""
        distance = np.arange(_TOP, dtype=np.int32)
        top_ids = (tokens[:, None] + distance) % self._vocab_size
        top = np.broadcast_to(-0.5 - distance.astype(np.float32), top_ids.shape)
        return LogprobArrays(top[:, 0], np.ones(len(tokens), np.int32), top_ids.astype(np.int32), top)
