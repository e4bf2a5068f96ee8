"""`RestartingClient`: an engine that is started again when it dies or hangs, with what it had not begun."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from octavo.engine.client import EngineClient, EngineListener, Host
from octavo.engine.info import EngineInfo
from octavo.engine.phases import Progress
from octavo.errors import EngineDeadError, OctavoError
from octavo.request import EngineRequest, EngineStats, StepOutputs

logger = logging.getLogger("octavo.engine")

LEAST_STEP_TIMEOUT = 3.0  # an engine that rests gives a sign once a second


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When to start an engine again.

    Attributes:
        max_restarts: within `window` seconds; one more death is the end.
        first_pause: seconds before the first restart; each further one within the window waits twice as long.
        step_timeout: seconds without a sign of life after which the engine is killed; 0 waits for ever.
        quiet: somebody else logs the engine's deaths.
    """

    max_restarts: int = 3
    window: float = 600.0
    first_pause: float = 0.25
    step_timeout: float = 120.0
    quiet: bool = False


class RestartingClient:
    """Keeps an engine alive. Itself an `EngineClient`.

    Requests that the engine has not begun (no `Started` came) are kept and go to the next one, once: what is there when
    two engines in a row die may be what they die of. Those that it had begun are lost, for the same reason.

    Args:
        make: a client of a new engine.
    """

    def __init__(self, make: Callable[[], EngineClient], policy: RestartPolicy):
        self._make = make
        self._policy = policy
        self._client = make()
        self._listener: EngineListener | None = None
        self._progress: Progress | None = None
        self._info: EngineInfo | None = None
        self._not_begun: dict[int, EngineRequest] = {}
        self._retried: set[int] = set()
        self._deaths: list[float] = []
        self._up = False
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._verdict: OctavoError | None = None  # of the watchdog, which the death it causes will be told with
        self._seen = self._looked = self._silent = 0.0

    async def start(self, listener: EngineListener, progress: Progress | None = None) -> EngineInfo:
        """Start the first engine; errors as of its client. One that cannot start is not tried again."""
        self._listener, self._progress = listener, progress
        self._info = await self._client.start(self, progress)
        self._up = True
        self._watch()
        return self._info

    def add(self, request: EngineRequest) -> None:
        """Send a request. Raises EngineDeadError, also between two engines."""
        if not self._up:
            raise EngineDeadError("The engine is being started again.", fix="Try again in a few seconds.")
        self._not_begun[request.handle] = request
        try:
            self._client.add(request)
        except EngineDeadError:  # it is dead, which nobody has been told yet: the next one gets it
            if self._closing:
                raise

    def abort(self, handle: int, index: int | None = None) -> None:
        """End a request, or one sample of it."""
        if index is None:
            self._forget(handle)
        if self._up:
            self._client.abort(handle, index)

    def attach(self, front: int, endpoint: str) -> None:
        """As of `ProcessClient`. An engine that dies forgets what was attached: each process opens a new channel."""
        if self._up and isinstance(self._client, Host):
            with contextlib.suppress(EngineDeadError):  # `on_dead` will come
                self._client.attach(front, endpoint)

    def detach(self, front: int) -> None:
        """As of `ProcessClient`."""
        if self._up and isinstance(self._client, Host):
            self._client.detach(front)

    @property
    def pid(self) -> int | None:
        """The engine's process id, while there is one."""
        pid: int | None = getattr(self._client, "pid", None)
        return pid

    @property
    def progress_time(self) -> float:
        """As of the engine's client; between two engines it is now."""
        return self._client.progress_time if self._up else time.monotonic()

    def kill(self) -> None:
        """End the engine at once; there will be another one."""
        self._client.kill()

    async def close(self) -> None:
        """End it for good."""
        self._closing = True
        self._up = False
        if self._timer is not None:
            self._timer.cancel()
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._client.close()

    # -- what the engine says ------------------------------------------------------------------------------------

    @property
    def _told(self) -> EngineListener:
        if self._listener is None:
            raise RuntimeError("the engine has not been started")
        return self._listener

    def on_outputs(self, step: StepOutputs) -> None:
        """What a step brought."""
        for started in step.started:
            self._forget(started.handle)
        for finished in step.finished:
            self._forget(finished.handle)
        self._told.on_outputs(step)

    def on_stats(self, stats: EngineStats) -> None:
        """The engine's figures."""
        self._told.on_stats(stats)

    def on_request_failed(self, handle: int, error: OctavoError) -> None:
        """The engine did not take a request."""
        self._forget(handle)
        self._told.on_request_failed(handle, error)

    def on_dead(self, error: OctavoError) -> None:
        """The engine died: start another one, unless that was tried often enough."""
        if self._closing:
            return
        self._up = False
        error, self._verdict = self._verdict or error, None
        if not self._may_restart():
            self._give_up(error)
            return
        if not self._policy.quiet:
            logger.error("%s It is started again (%d of %d).", error, len(self._deaths), self._policy.max_restarts)
        for handle in self._retried & self._not_begun.keys():
            self._forget(handle)
        self._told.on_restarting(error, frozenset(self._not_begun))
        self._task = asyncio.get_running_loop().create_task(self._restart())

    def on_restarting(self, error: OctavoError, kept: Collection[int]) -> None:
        """The client restarts engines itself."""
        self._told.on_restarting(error, kept)

    def on_restarted(self) -> None:
        """As above."""
        self._told.on_restarted()

    def _forget(self, handle: int) -> None:
        self._not_begun.pop(handle, None)
        self._retried.discard(handle)

    def _may_restart(self) -> bool:
        """Count a death; whether there may be another engine."""
        now = time.monotonic()
        self._deaths = [death for death in self._deaths if now - death < self._policy.window]
        self._deaths.append(now)
        return len(self._deaths) <= self._policy.max_restarts

    def _give_up(self, error: OctavoError) -> None:
        self._closing = True
        self._not_begun.clear()
        if len(self._deaths) > 1:
            error = EngineDeadError(
                f"{error.message} It was started again {len(self._deaths) - 1} times before.", fix=error.fix
            )
        self._told.on_dead(error)

    async def _restart(self) -> None:
        while True:
            await self._client.close()
            await asyncio.sleep(self._policy.first_pause * 2 ** (len(self._deaths) - 1))
            self._client = self._make()
            try:
                info = await self._client.start(self, self._progress)
            except OctavoError as error:
                logger.error("The engine could not be started again: %s", error)
                if not self._may_restart():
                    self._give_up(error)
                    return
                continue
            break
        before = self._info or info
        if info.vocab_size != before.vocab_size or info.max_model_len < before.max_model_len:
            self._give_up(EngineDeadError("The engine came back with another model.", fix="Start the server again."))
            return
        self._up = True
        self._retried = set(self._not_begun)
        for request in list(self._not_begun.values()):
            with contextlib.suppress(EngineDeadError):  # `on_dead` will come
                self._client.add(request)
        if self._not_begun or not self._policy.quiet:
            logger.warning("The engine is back, with %d requests that waited.", len(self._not_begun))
        self._watch()
        self._told.on_restarted()

    # -- the watchdog --------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Begin to look for signs of life."""
        if self._policy.step_timeout > 0:
            self._seen, self._silent = self._client.progress_time, 0.0
            self._look_later()

    def _look_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._looked = loop.time()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(self._tick, self._look)

    @property
    def _tick(self) -> float:
        return min(1.0, self._policy.step_timeout / 4)

    def _look(self) -> None:
        """Add up silence by short looks: if this process itself was stopped, that time does not count."""
        if not self._up:
            return
        now, progress = asyncio.get_running_loop().time(), self._client.progress_time
        self._silent = 0.0 if progress != self._seen else self._silent + min(now - self._looked, 2 * self._tick)
        self._seen = progress
        limit = max(self._policy.step_timeout, LEAST_STEP_TIMEOUT)
        if self._silent > limit:
            self._verdict = EngineDeadError(
                f"The engine gave no sign of life for {limit:g} seconds and was ended.",
                fix="If its steps take that long, raise --step-timeout.",
            )
            self._client.kill()
            return
        self._look_later()
