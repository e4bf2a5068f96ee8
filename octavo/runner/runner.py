"""One step on one device: apply the plan to the rows, build the inputs, run the model, sample."""

from __future__ import annotations

import dataclasses
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch

from octavo.attention import AttentionMetadata
from octavo.layers.batch import Attend, ForwardBatch
from octavo.plan import LogprobArrays, PromptLogprobsPlan, StepPlan, StepResult
from octavo.request import SamplingParams
from octavo.runner.failure import failed_result
from octavo.runner.graphs import Recordings
from octavo.runner.pooling import Pooler
from octavo.runner.rows import RowTable
from octavo.runner.sampler import Sampler, SamplerState, logprobs_of

logger = logging.getLogger(__name__)


class Pending(Protocol):
    """A launched step."""

    def result(self) -> StepResult:
        """Wait for what it brings."""
        ...


class StepRunner(Protocol):
    """What the engine asks of a device: steps run in the order of their launch."""

    @property
    def num_host_slots(self) -> int:
        """Pages that host memory holds by now, for `StepPlan.swap_out`; it never shrinks."""
        ...

    def launch(self, plan: StepPlan) -> Pending: ...

    def close(self) -> None: ...


class Model(Protocol):
    """What a runner asks of a model."""

    def hidden_states(self, batch: ForwardBatch) -> torch.Tensor: ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor: ...

    def shallow(self, layers: int) -> Model:
        """The same with so many of the layers, the last among them: it runs every kernel that this one does."""
        ...


class Runner:
    """Runs plans in order. `launch` returns at once; the `result()` of what it returns is waited for.

    The work is done in one worker thread, which stands for a GPU's stream: the engine plans the next step
    meanwhile, and torch releases the interpreter lock while it computes. With `asynchronous=False`, `launch` does
    the work itself, which is the simple path for tests and fault finding.

    Args:
        kv_caches: per layer (keys, values), each [num_pages, num_kv_heads, page_size, head_dim].
        cos_sin: float32 [max_model_len, head_dim].
        record_decodes: replay steps of few tokens, see `octavo.runner.graphs`.
        num_host_slots: pages that are kept for preempted sequences, beside the pool.
    """

    def __init__(
        self,
        model: Model,
        kv_caches: list[tuple[torch.Tensor, torch.Tensor]],
        cos_sin: torch.Tensor,
        attend: Attend,
        *,
        max_num_seqs: int,
        max_model_len: int,
        vocab_size: int,
        page_size: int,
        asynchronous: bool,
        record_decodes: bool = True,
        num_host_slots: int = 0,
    ):
        self._model, self._kv_caches, self._cos_sin, self._attend = model, kv_caches, cos_sin, attend
        # Pages as bytes: numpy copies a few of them in a thread's time, torch's indexing calls all threads together.
        self._pages = [cache.view(torch.uint8).view(len(cache), -1).numpy() for pair in kv_caches for cache in pair]
        self.num_host_slots = num_host_slots
        self._host = [np.empty((num_host_slots, pages.shape[1]), np.uint8) for pages in self._pages]
        self._rows = RowTable(max_num_seqs, max_model_len, page_size)
        self._sampler = Sampler(SamplerState(max_num_seqs, vocab_size))
        self._graphs = Recordings(self._logits_of_all, self._rows) if record_decodes else None
        self._pooler = Pooler()
        self._thread = ThreadPoolExecutor(1, "octavo-runner") if asynchronous else None

    def launch(self, plan: StepPlan) -> Future[StepResult]:
        """Start a step; steps run in the order of their launch."""
        if self._thread is not None:
            return self._thread.submit(self._run, plan)
        done: Future[StepResult] = Future()
        done.set_result(self._run(plan))
        return done

    def close(self) -> None:
        """Wait for what was launched and let go of the memory."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        self._kv_caches, self._pages, self._host = [], [], []
        self._graphs = None  # which refers to this runner

    def _run(self, plan: StepPlan) -> StepResult:
        """A step whose computation raises, fails its own requests: every row is reported in `failed`."""
        broken = self._apply(plan)
        try:
            with torch.inference_mode():
                result = self._compute(plan)
        except Exception:
            logger.exception("step %d failed; its %d sequences end with an error", plan.step, len(plan.rows))
            return failed_result(plan)
        if not broken:
            return result
        places = np.flatnonzero(np.isin(plan.rows, list(broken))).tolist()
        return dataclasses.replace(result, failed=tuple(sorted({*result.failed, *places})))

    def _apply(self, plan: StepPlan) -> set[int]:
        """Bring the rows up to date; returns rows whose parameters cannot be used, which fail alone."""
        self._rows.apply(plan)
        self._pooler.forget(plan)
        for row in plan.free_rows.tolist():
            self._sampler.state.clear_row(row)
        broken = set()
        for new_row in plan.new_rows:
            try:
                self._sampler.state.set_row(new_row)
            except Exception:
                logger.exception("the parameters of row %d cannot be used", new_row.row)
                self._sampler.state.set_row(dataclasses.replace(new_row, params=SamplingParams(temperature=0)))
                broken.add(new_row.row)
        for row, words in zip(plan.mask_rows.tolist(), plan.masks, strict=True):
            self._sampler.state.set_mask(row, words)
        if len(plan.swap_out) or len(plan.swap_in):
            for pages, host in zip(self._pages, self._host, strict=True):
                host[plan.swap_out[:, 1]] = pages[plan.swap_out[:, 0]]
                pages[plan.swap_in[:, 0]] = host[plan.swap_in[:, 1]]
        if len(plan.copy_pages):
            sources, destinations = plan.copy_pages.T
            for pages in self._pages:
                pages[destinations] = pages[sources]
        return broken

    def _hidden_states(
        self, token_ids: torch.Tensor, metadata: AttentionMetadata, wanted: torch.Tensor | None = None
    ) -> torch.Tensor:
        batch = ForwardBatch(token_ids, metadata, self._cos_sin, self._kv_caches, self._attend, wanted)
        return self._model.hidden_states(batch)

    def _logits_of_all(self, token_ids: torch.Tensor, metadata: AttentionMetadata) -> torch.Tensor:
        return self._model.logits(self._hidden_states(token_ids, metadata))

    def _compute(self, plan: StepPlan) -> StepResult:
        logits = self._graphs.run(plan) if self._graphs is not None else None
        if logits is not None:
            sampled = self._sampler.sample(logits, plan.rows, plan.context_lens + plan.query_lens)
            self._rows.store_samples(plan.rows, sampled.tokens)
            failed = tuple(np.flatnonzero(sampled.failed.numpy()).tolist())
            return StepResult(plan.step, sampled.tokens.numpy(), logprobs=sampled.logprobs, failed=failed)
        chosen = np.flatnonzero(plan.sample)
        last = torch.from_numpy(np.cumsum(plan.query_lens)[chosen] - 1)
        wanted = None if plan.prompt_logprobs or plan.pooling else last
        hidden = self._hidden_states(self._rows.token_ids(plan), self._rows.metadata(plan), wanted)
        scored = tuple(self._score_prompt(plan, hidden, entry) for entry in plan.prompt_logprobs)
        pooled, unusable = self._pooler.pool(plan, hidden)
        if len(chosen) == 0:
            nothing = np.empty(0, np.int32)
            return StepResult(plan.step, nothing, prompt_logprobs=scored, failed=unusable, pooled=pooled)
        rows, positions = plan.rows[chosen], (plan.context_lens + plan.query_lens)[chosen]
        sampled = self._sampler.sample(self._model.logits(hidden if wanted is last else hidden[last]), rows, positions)
        self._rows.store_samples(rows, sampled.tokens)
        return StepResult(
            plan.step,
            sampled.tokens.numpy(),
            logprobs=sampled.logprobs,
            prompt_logprobs=scored,
            failed=tuple(sorted([*chosen[sampled.failed.numpy()].tolist(), *unusable])),
            pooled=pooled,
        )

    def _score_prompt(self, plan: StepPlan, hidden: torch.Tensor, entry: PromptLogprobsPlan) -> LogprobArrays:
        start = int(plan.query_lens[: entry.index].sum())
        rows = hidden[start : start + len(entry.targets)]
        targets = torch.from_numpy(entry.targets.astype(np.int64))
        return logprobs_of(lambda part: self._model.logits(rows[part]), targets, entry.k)
