"""`AsyncLLM`: a model in a process of its own, for many requests at a time from one event loop."""

from __future__ import annotations

import asyncio
import itertools
import math
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Literal, TypeVar

import msgspec

from octavo.config import EngineConfig
from octavo.engine.client import ClientFactory, EngineClient, ProcessClient
from octavo.engine.info import EngineInfo
from octavo.engine.phases import Progress
from octavo.errors import (
    DeadlineError,
    EngineDeadError,
    InvalidRequestError,
    OctavoError,
    OverloadedError,
    TooManyRequestsError,
)
from octavo.frontend.caller import CALLER, Caller
from octavo.frontend.chat_template import user_strings
from octavo.frontend.drain_rate import DrainRate
from octavo.frontend.embedding import check_dimensions, embedding_output
from octavo.frontend.load import Frontend, load_frontend
from octavo.frontend.off_loop import OffLoop
from octavo.frontend.outputs import ProcessedStep
from octavo.frontend.sample import Update
from octavo.frontend.update_stream import UpdateStream
from octavo.request import (
    EmbeddingRequestOutput,
    EngineRequest,
    EngineStats,
    RequestOutput,
    SamplingParams,
    StepOutputs,
)

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]
State = Literal["new", "loading", "ready", "hung", "restarting", "dead", "closed"]
T = TypeVar("T")

HUNG_SECONDS = 30.0


class AsyncLLM:
    """A model in its own process, asked from one event loop.

    >>> async with AsyncLLM("SmolLM2-135M-Instruct") as llm:
    ...     async for output in llm.generate("The capital of France is", SamplingParams(max_tokens=8)):
    ...         print(output.outputs[0].text)

    `await AsyncLLM.start(...)` does the same without the block; `close` then frees the engine.

    Args:
        model: folder, .gguf file, catalogue name or Hugging Face repository.
        progress: called with (phase, fraction) while it loads.
        **options: any field of `octavo.config.EngineConfig`'s groups, as `max_num_seqs=64`.
    """

    def __init__(self, model: str = "SmolLM2-135M-Instruct", *, progress: Progress | None = None, **options: Any):
        self._setup(EngineConfig.of(model=model, **options), ProcessClient, progress, 20)

    @classmethod
    def of_config(
        cls,
        config: EngineConfig,
        *,
        client: ClientFactory = ProcessClient,
        progress: Progress | None = None,
        max_logprobs: int = 20,
        default_max_tokens: int | None = None,
        first_handle: int = 1,
    ) -> AsyncLLM:
        """From a config that is built already; `client` makes the way to the engine. Requests' handles count up from
        `first_handle`: those of all who ask one engine must differ."""
        self = cls.__new__(cls)
        self._setup(config, client, progress, max_logprobs)
        self._default_max_tokens = default_max_tokens
        self._handles = itertools.count(first_handle)
        return self

    @classmethod
    async def start(
        cls, model: str = "SmolLM2-135M-Instruct", *, progress: Progress | None = None, **options: Any
    ) -> AsyncLLM:
        """Load a model. Arguments as of the class.

        Raises:
            OctavoError: the model cannot be found, read, or served with these options.
        """
        self = cls(model, progress=progress, **options)
        await self.load()
        return self

    def _setup(self, config: EngineConfig, client: ClientFactory, progress: Progress | None, max_logprobs: int) -> None:
        self.config = config
        self.stats = EngineStats()
        self.loading: tuple[str, float] = ("start the engine's process", 0.0)
        self.loop: asyncio.AbstractEventLoop
        self.on_end: Callable[[Update], None] = lambda update: None
        self.on_step: Callable[[ProcessedStep], None] = lambda step: None
        self._client: EngineClient = client(config)
        self._progress = progress
        self._max_logprobs = max_logprobs
        self._default_max_tokens: int | None = None
        self._max_queued = config.scheduler.max_num_queued_reqs
        self._info: EngineInfo | None = None
        self._frontend: Frontend | None = None
        self._handles = itertools.count(1)
        self.off_loop = OffLoop()
        self._streams: dict[int, UpdateStream] = {}
        self._waiting: dict[int, str] = {}  # handles that the engine has not begun with, and their tenants
        self._waiting_of: Counter[str] = Counter()
        self._drain_rate = DrainRate()
        self._handle_of: dict[str, int] = {}
        self._busy_since = 0.0
        self._state: State = "new"
        self._restarting = False
        self.num_restarts = 0
        self.hung_seconds = HUNG_SECONDS
        self.error: OctavoError | None = None

    # -- life ----------------------------------------------------------------------------------------------------

    async def load(self) -> EngineInfo:
        """Start the engine and wait for its model; errors as of `start`."""
        self._state = "loading"
        self.loop = asyncio.get_running_loop()
        try:
            info = await self._client.start(self, self._on_progress)
            self.loading = ("load the tokenizer", 0.0)
            self._frontend = await asyncio.to_thread(
                load_frontend,
                self.config,
                info,
                max_logprobs=self._max_logprobs,
                default_max_tokens=self._default_max_tokens,
            )
        except BaseException as error:
            await self.close()
            if isinstance(error, OctavoError):
                self.error, self._state = error, "dead"
            raise
        if self.error is not None:  # the engine died while the tokenizer was loaded
            raise self.error
        self._info = info
        self._state = "ready"
        return info

    def _on_progress(self, phase: str, fraction: float) -> None:
        self.loading = (phase, fraction)
        if self._progress is not None:
            self._progress(phase, fraction)

    async def close(self) -> None:
        """End every open request with an error, and the engine; free everything. May be called again."""
        if self._state != "dead":
            self._state = "closed"
        self.fail_open(EngineDeadError("The engine was closed."))
        self.off_loop.close()
        if self._frontend is not None:
            self._frontend.inputs.grammars.close()
        await self._client.close()

    async def __aenter__(self) -> AsyncLLM:
        await self.load()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def state(self) -> State:
        """How things stand. "hung": there is work, and nothing has come of it for `hung_seconds`."""
        if self._state == "ready" and self._restarting:
            return "restarting"
        if self._state == "ready" and self._streams:
            last = max(self._client.progress_time, self._busy_since)
            if time.monotonic() - last > self.hung_seconds:
                return "hung"
        return self._state

    @property
    def info(self) -> EngineInfo:
        """What was loaded. Raises EngineDeadError before it is."""
        if self._info is None:
            raise self._unavailable()
        return self._info

    @property
    def frontend(self) -> Frontend:
        """Tokenizer, request maker, output processor. Raises EngineDeadError before the model is loaded."""
        if self._frontend is None:
            raise self._unavailable()
        return self._frontend

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    def _unavailable(self) -> OctavoError:
        if isinstance(self.error, EngineDeadError):
            return EngineDeadError(self.error.message, fix=self.error.fix)
        if self._restarting:
            return OverloadedError("The engine is being started again.", retry_after=2.0, fix="Try again soon.")
        return EngineDeadError("The engine is not running.", fix="Start it first, or again.")

    # -- requests ------------------------------------------------------------------------------------------------

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> AsyncIterator[RequestOutput]:
        """Complete a prompt; yields the output so far whenever it has grown. Leaving the loop aborts the request.

        Args:
            prompt: text or token ids.
            params: default `SamplingParams()`.
            request_id: for `abort`; one is made up if None.
            priority: lower first, under `scheduling_policy="priority"`.
            cache_salt: requests with different salts share no cached pages.

        Raises:
            InvalidRequestError: the prompt or a parameter is bad.
            OverloadedError: too many requests wait.
            EngineDeadError: the engine ended.
        """
        request = await self.completion_request(
            prompt, params or SamplingParams(), request_id=request_id, priority=priority, cache_salt=cache_salt
        )
        async with aclosing(self._outputs(request, prompt if isinstance(prompt, str) else None)) as outputs:
            async for output in outputs:
                yield output

    async def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        **template_options: Any,
    ) -> AsyncIterator[RequestOutput]:
        """Answer a conversation through the model's chat template; the rest is as in `generate`.

        Args:
            messages: dicts with `role` and `content`.
            params: default `SamplingParams(max_tokens=None)`: an answer may use the whole context.
            **template_options: `tools`, `add_generation_prompt`, `continue_final_message`, `chat_template_kwargs`.
        """
        request = await self.chat_request(
            messages,
            params or SamplingParams(max_tokens=None),
            request_id=request_id,
            priority=priority,
            cache_salt=cache_salt,
            **template_options,
        )
        async with aclosing(self._outputs(request, None)) as outputs:
            async for output in outputs:
                yield output

    def abort(self, request_id: str) -> bool:
        """End a request; its iterator ends with what there is. False if there is none of that name."""
        stream = self._streams.get(self._handle_of.get(request_id, 0))
        if stream is None:
            return False
        stream.close()
        return True

    async def completion_request(
        self, prompt: Prompt, params: SamplingParams, *, request_id: str | None = None, **options: Any
    ) -> EngineRequest:
        """A request that `submit` takes; `options` and errors as of `InputProcessor.completion`."""
        handle = next(self._handles)
        inputs = self.frontend.inputs

        def make() -> EngineRequest:
            return inputs.completion(prompt, params, request_id=request_id or new_id(), handle=handle, **options)

        return await self.off_loop.make_guided(make, len(prompt), params, inputs)

    async def chat_request(
        self, messages: Messages, params: SamplingParams, *, request_id: str | None = None, **options: Any
    ) -> EngineRequest:
        """A request that `submit` takes; `options` and errors as of `InputProcessor.chat`."""
        handle = next(self._handles)
        inputs = self.frontend.inputs

        def make() -> EngineRequest:
            return inputs.chat(messages, params, request_id=request_id or new_id(), handle=handle, **options)

        size = sum(map(len, user_strings([messages, options.get("chat_template_kwargs")])))
        return await self.off_loop.make_guided(make, size, params, inputs)

    async def embedding_request(
        self, prompt: Prompt, *, request_id: str | None = None, **options: Any
    ) -> EngineRequest:
        """A request that `submit` takes; `options` and errors as of `InputProcessor.embedding`."""
        handle = next(self._handles)
        inputs = self.frontend.inputs

        def make() -> EngineRequest:
            return inputs.embedding(prompt, request_id=request_id or new_id(), handle=handle, **options)

        return await self.off_loop.make(make, len(prompt))

    async def embed(
        self,
        prompt: Prompt,
        *,
        dimensions: int | None = None,
        normalize: bool = True,
        request_id: str | None = None,
        **options: Any,
    ) -> EmbeddingRequestOutput:
        """The embedding of a text or of token ids.

        Args:
            dimensions, normalize: as of `LLM.embed`.
            **options: `pooling`, `priority`, `cache_salt`, `add_special_tokens`.

        Raises:
            InvalidRequestError, OverloadedError, EngineDeadError: as of `generate`.
            RequestFailedError: it is not finite.
        """
        check_dimensions(dimensions, self.info.hidden_size)
        request = await self.embedding_request(prompt, request_id=request_id, **options)
        stream = self.submit([request], [prompt if isinstance(prompt, str) else None])
        try:
            await stream.finish()
        finally:
            stream.close()
        return embedding_output(stream.opened[0], dimensions, normalize)

    def submit(
        self,
        requests: Sequence[EngineRequest],
        prompts: Sequence[str | None] = (),
        *,
        max_pending: int = sys.maxsize,
    ) -> UpdateStream:
        """Send requests to the engine; what comes of them is read from one stream, which must be closed.

        Args:
            prompts: their texts, for the results.
            max_pending: updates that may wait for the reader; beyond it the requests fail.

        Raises:
            OverloadedError: too many requests wait, or too many of this caller's; none was sent.
            DeadlineError: the caller's time was up before.
            EngineDeadError: there is no engine.
            InvalidRequestError: a request id is in use.
        """
        if self._state != "ready" or self._restarting:
            raise self._unavailable()
        caller = CALLER.get()
        self._check_room(caller, len(requests))
        names = {request.request_id for request in requests}
        if len(names) < len(requests) or not names.isdisjoint(self._handle_of):
            raise InvalidRequestError("A request of that id is open.", fix="Choose another one.", param="request_id")
        requests = [_on_behalf(caller, request) for request in requests]
        stream = UpdateStream(self, requests, max_pending)
        if not self._streams:
            self._busy_since = time.monotonic()
        for request, prompt in itertools.zip_longest(requests, prompts[: len(requests)]):
            self._client.add(request)
            stream.opened.append(self.frontend.outputs.add(request, prompt))
            self._streams[request.handle] = stream
            self._handle_of[request.request_id] = request.handle
            self._waiting[request.handle] = request.tenant
            self._waiting_of[request.tenant] += 1
        if caller.deadline < math.inf:
            stream.end_at(caller.deadline)
        return stream

    def _check_room(self, caller: Caller, num_new: int) -> None:
        now = time.monotonic()
        if now >= caller.deadline:
            raise DeadlineError("The request's time was up before it began.", fix="Allow it more time.")
        num_waiting = len(self._waiting)
        if num_waiting + num_new > max(self._max_queued, 1):
            raise OverloadedError(
                f"{num_waiting} requests wait already.",
                retry_after=self._drain_rate.seconds_for(max(num_new, num_waiting // 8), now),
                fix="Try again later.",
            )
        own = self._waiting_of[caller.tenant]
        if caller.max_waiting is not None and own + num_new > caller.max_waiting:
            raise TooManyRequestsError(
                f"{own} requests of this key wait already.",
                retry_after=self._drain_rate.seconds_for(max(num_new, own // 8), now),
                fix="Try again later, with fewer at a time.",
            )

    def forget(self, stream: UpdateStream) -> None:
        """Abort what is open of a stream, here and in the engine."""
        for request in stream.requests:
            if request.handle in stream.handles:
                for update in self.frontend.outputs.abort(request.handle):
                    self.on_end(update)
                self._client.abort(request.handle)
                self._drop(request.handle, request.request_id)
        stream.handles.clear()

    def fail_open(self, error: OctavoError) -> None:
        """End every open request with an error."""
        for stream in set(self._streams.values()):
            stream.fail(error)

    async def _outputs(self, request: EngineRequest, prompt: str | None) -> AsyncGenerator[RequestOutput, None]:
        stream = self.submit([request], [prompt])
        try:
            while updates := await stream.next():
                yield updates[-1].result()
        finally:
            stream.close()

    def _drop(self, handle: int, request_id: str) -> None:
        if self._streams.pop(handle, None) is not None:
            self._drain_rate.note(time.monotonic())
        self._begun(handle)
        self._handle_of.pop(request_id, None)

    def _begun(self, handle: int) -> None:
        """The engine has taken a request up, or it ended before."""
        tenant = self._waiting.pop(handle, None)
        if tenant is not None:
            self._waiting_of[tenant] -= 1
            if not self._waiting_of[tenant]:
                del self._waiting_of[tenant]

    # -- what the engine says ------------------------------------------------------------------------------------

    def on_outputs(self, step: StepOutputs) -> None:
        """One step of the engine: to text, and to whom it belongs."""
        for started in step.started:
            self._begun(started.handle)
        processed = self.frontend.outputs.process(step)
        streams = self._streams
        for update in processed.updates:
            stream = streams.get(update.handle)
            if stream is None:
                continue
            if update.finish_reason is not None:
                self.on_end(update)
                if update.finished:
                    self._drop(update.handle, update.request.request_id)
            stream.push(update)
        for handle, index in processed.aborts:
            self._client.abort(handle, index)
        self.on_step(processed)
        self.stats = processed.stats or self.stats

    def on_stats(self, stats: EngineStats) -> None:
        """The engine's figures, when it rests or has worked for a second."""
        self.stats = stats

    def on_request_failed(self, handle: int, error: OctavoError) -> None:
        """The engine did not take a request."""
        stream = self._streams.get(handle)
        if stream is not None:
            stream.fail(error)

    def on_restarting(self, error: OctavoError, kept: Collection[int]) -> None:
        """The engine died, and another one comes: what it had begun ends, what waited stays."""
        self._restarting = True
        self.num_restarts += 1
        for stream in set(self._streams.values()):
            if not stream.handles.issubset(kept):
                stream.fail(error)

    def on_restarted(self) -> None:
        """There is an engine again."""
        self._restarting = False
        self._busy_since = time.monotonic()

    def on_dead(self, error: OctavoError) -> None:
        """The engine ended: so does every open request."""
        self.error, self._state = error, "dead"
        self.fail_open(error)


def new_id() -> str:
    """A request id that nobody else has."""
    return uuid.uuid4().hex


def _on_behalf(caller: Caller, request: EngineRequest) -> EngineRequest:
    if not caller.tenant and not caller.cache_secret:
        return request
    return msgspec.structs.replace(request, tenant=caller.tenant, cache_salt=caller.salt(request.cache_salt))
