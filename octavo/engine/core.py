"""The engine: one scheduler, one runner, and the loop that joins them."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from octavo.config import EngineConfig
from octavo.engine.info import EngineInfo
from octavo.engine.load import load
from octavo.engine.phases import PhaseTimer, Progress
from octavo.errors import InvalidRequestError, OctavoError
from octavo.grammar.guide import GuideMaker, VocabularySource
from octavo.plan import StepPlan
from octavo.request import EngineRequest, EngineStats, Finished, StepOutputs
from octavo.runner.runner import Pending, StepRunner
from octavo.scheduler import Scheduler, SchedulerConfig

_GRAMMAR_SECONDS = 0.002  # a turn's wait where there is nothing to do but to build a grammar


class _NoRunner:
    """In the place of a closed engine's, so that nothing holds the model and its pages."""

    num_host_slots = 0

    def launch(self, plan: StepPlan) -> Pending:
        raise RuntimeError("This engine was closed.")

    def close(self) -> None:
        pass


class Engine:
    """Serves validated requests from one model on one device. Not thread-safe: one caller drives it.

    Args:
        vocabulary: of the model's tokenizer; without it, requests with a grammar are refused.
        before: phases of the start that are over, and their seconds.

    Raises:
        ModelNotFoundError, ModelFileError, ConfigError: the model cannot be served with these options.
    """

    def __init__(
        self,
        config: EngineConfig,
        progress: Progress | None = None,
        vocabulary: VocabularySource | None = None,
        before: Sequence[tuple[str, float]] = (),
    ):
        timer = PhaseTimer(progress, before)
        loaded = load(config, timer)
        self.info: EngineInfo = loaded.info
        self._runner: StepRunner = loaded.runner
        self._scheduler = Scheduler(
            SchedulerConfig(
                max_num_seqs=self.info.max_num_seqs,
                max_num_batched_tokens=self.info.max_num_batched_tokens,
                max_model_len=self.info.max_model_len,
                num_pages=self.info.num_pages,
                page_size=self.info.page_size,
                policy=config.scheduler.scheduling_policy,
                enable_prefix_caching=config.cache.enable_prefix_caching,
                async_scheduling=config.scheduler.async_scheduling,
                max_num_queued_reqs=config.scheduler.max_num_queued_reqs,
            ),
            num_host_slots=lambda: self._runner.num_host_slots,
        )
        self._run_ahead = config.scheduler.async_scheduling
        self._in_flight: Pending | None = None
        self._grammars = GuideMaker(vocabulary, self.info.vocab_size) if vocabulary is not None else None

    def step(self) -> StepOutputs | None:
        """One turn: launch the next plan, settle the one before it, and if the next one had to wait for that, launch it
        then, so that what is made of the outputs keeps no device waiting. None if nothing was settled."""
        if self._grammars is not None and len(self._grammars):
            refused = self._admit_guided(self._grammars)
            if refused:
                return StepOutputs([], [], [], refused, stats=self.stats())
        if not self._run_ahead:
            return self._step_in_turn()
        launched = self._launch()  # assumes that the tokens in flight arrive
        settled = self._in_flight.result() if self._in_flight is not None else None
        self._in_flight = launched
        if settled is None:
            return None
        outputs = self._scheduler.commit(settled)
        if self._in_flight is None:
            self._in_flight = self._launch()
        return outputs

    def _launch(self) -> Pending | None:
        plan = self._scheduler.plan()
        return self._runner.launch(plan) if plan is not None else None

    def _admit_guided(self, grammars: GuideMaker) -> list[Finished]:
        """Queue what has its grammar now; returns the ends of what cannot be queued."""
        idle = not self._scheduler.has_work and self._in_flight is None
        refused = []
        for request, guide in grammars.arrived(_GRAMMAR_SECONDS if idle else 0.0):
            error = guide if isinstance(guide, str) else guide.error
            try:
                if not error and not isinstance(guide, str):
                    self._scheduler.add(request, guide)
            except OctavoError as refusal:
                error = str(refusal)
            if error:
                refused += [Finished(request.handle, i, "error", None, error) for i in range(request.params.n)]
        return refused

    def _step_in_turn(self) -> StepOutputs | None:
        """The simple path: nothing is planned before every token is known."""
        launched = self._launch()
        return self._scheduler.commit(launched.result()) if launched is not None else None

    def add(self, request: EngineRequest) -> None:
        """Queue a request.

        Raises:
            OverloadedError: the queue is full.
            ContextLengthError: it can never fit.
            InvalidRequestError: it brings a grammar and the engine has no vocabulary.
        """
        if request.grammar:
            if self._grammars is None:
                raise InvalidRequestError(
                    "This engine has no vocabulary to keep structured_outputs with.", param="structured_outputs"
                )
            self._scheduler.check_room(request)
            self._grammars.begin(request)
            return
        self._scheduler.add(request)

    def abort(self, handle: int, index: int | None = None) -> bool:
        """End a request, or one sample of it, wherever it is; no output for it follows. False if it is not here."""
        if self._grammars is not None and index is None and self._grammars.abort(handle):
            return True
        return self._scheduler.abort(handle, index)

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to plan or to settle."""
        return self._scheduler.has_work or self._in_flight is not None or bool(self._grammars)

    def stats(self) -> EngineStats:
        return self._scheduler.stats()

    def check(self) -> None:
        """Verify the pool's invariants; raises on the first that does not hold."""
        self._scheduler.check()

    def close(self) -> None:
        """Let the running step end, then free everything: another engine may have the device's memory."""
        self._in_flight = None
        if self._grammars is not None:
            self._grammars.close()
        self._runner.close()
        self._runner = _NoRunner()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
