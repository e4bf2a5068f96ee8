"""The engine: one scheduler, one runner, and the loop that joins them."""

from __future__ import annotations

from types import TracebackType

from octavo.config import EngineConfig
from octavo.engine.info import EngineInfo
from octavo.engine.load import load
from octavo.engine.phases import PhaseTimer, Progress
from octavo.request import EngineRequest, EngineStats, StepOutputs
from octavo.runner.runner import Pending, StepRunner
from octavo.scheduler import Scheduler, SchedulerConfig


class Engine:
    """Serves validated requests from one model on one device. Not thread-safe: one caller drives it.

    Raises:
        ModelNotFoundError, ModelFileError, ConfigError: the model cannot be served with these options.
    """

    def __init__(self, config: EngineConfig, progress: Progress | None = None):
        timer = PhaseTimer(progress)
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
            )
        )
        self._run_ahead = config.scheduler.async_scheduling
        self._in_flight: Pending | None = None

    def step(self) -> StepOutputs | None:
        """One turn: launch the next plan, then settle the one before it. None if nothing was settled."""
        if not self._run_ahead:
            return self._step_in_turn()
        plan = self._scheduler.plan()  # assumes that the tokens in flight arrive
        launched = self._runner.launch(plan) if plan is not None else None
        settled = self._in_flight.result() if self._in_flight is not None else None
        self._in_flight = launched
        return self._scheduler.commit(settled) if settled is not None else None

    def _step_in_turn(self) -> StepOutputs | None:
        """The simple path: nothing is planned before every token is known."""
        plan = self._scheduler.plan()
        if plan is None:
            return None
        return self._scheduler.commit(self._runner.launch(plan).result())

    def add(self, request: EngineRequest) -> None:
        """Queue a request.

        Raises:
            OverloadedError: the queue is full.
            ContextLengthError: it can never fit.
        """
        self._scheduler.add(request)

    def abort(self, handle: int, index: int | None = None) -> bool:
        """End a request, or one sample of it, wherever it is; no output for it follows. False if it is not here."""
        return self._scheduler.abort(handle, index)

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to plan or to settle."""
        return self._scheduler.has_work or self._in_flight is not None

    def stats(self) -> EngineStats:
        return self._scheduler.stats()

    def check(self) -> None:
        """Verify the pool's invariants; raises on the first that does not hold."""
        self._scheduler.check()

    def close(self) -> None:
        """Let the running step end, then free everything."""
        self._in_flight = None
        self._runner.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
