"""`LLM`: a model in this process, for batches and scripts."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, TypeVar, cast

from octavo.config import EngineConfig
from octavo.engine.core import Engine
from octavo.engine.info import EngineInfo
from octavo.engine.phases import Progress
from octavo.errors import InvalidRequestError
from octavo.frontend.embedding import check_dimensions, embedding_output
from octavo.frontend.grammar import encoded_vocabulary
from octavo.frontend.load import load_frontend
from octavo.frontend.sample import OpenRequest, Update
from octavo.progress import BatchProgress
from octavo.request import (
    BeamSearchOutput,
    BeamSearchParams,
    EmbeddingRequestOutput,
    EngineRequest,
    EngineStats,
    RequestOutput,
    SamplingParams,
)

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]
T = TypeVar("T")


class LLM:
    """A model loaded in this process.

    >>> with LLM("SmolLM2-135M-Instruct") as llm:
    ...     print(llm.generate("The capital of France is", SamplingParams(temperature=0))[0].outputs[0].text)

    Args:
        model: folder, .gguf file, catalogue name or Hugging Face repository.
        progress: called with (phase, fraction) while it loads.
        **options: any field of `octavo.config.EngineConfig`'s groups, as `max_num_seqs=64`.

    Raises:
        OctavoError: the model cannot be found, read, or served with these options.
    """

    def __init__(self, model: str = "SmolLM2-135M-Instruct", *, progress: Progress | None = None, **options: Any):
        config = EngineConfig.of(model=model, **options)
        self._engine = Engine(config, progress, lambda size: encoded_vocabulary(self.tokenizer, size))
        self._frontend = load_frontend(config, self._engine.info)
        self._max_queued = config.scheduler.max_num_queued_reqs
        self._handles = itertools.count(1)

    @property
    def info(self) -> EngineInfo:
        """What was loaded, with the memory table and the start's times."""
        return self._engine.info

    @property
    def tokenizer(self) -> Any:
        """The model's `octavo.frontend.tokenizer.Tokenizer`, or None with skip_tokenizer_init."""
        return self._frontend.tokenizer

    def stats(self) -> EngineStats:
        """Counters since the start and gauges of now."""
        return self._engine.stats()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: int | Sequence[int] = 0,
        cache_salt: str = "",
    ) -> list[RequestOutput]:
        """Complete one prompt or many; results come in the order of the prompts.

        Args:
            prompts: text or token ids, one or a sequence of them.
            params: one for all, or one each; default `SamplingParams()`.
            use_tqdm: show a progress bar on a terminal.
            priority: lower first, under `scheduling_policy="priority"`; one for all, or one each.

        Raises:
            InvalidRequestError: a prompt or parameter is bad; nothing has run then.
        """
        many = _as_list(prompts)
        chosen = _one_each(params if params is not None else SamplingParams(), len(many), "params")
        order = _one_each(priority, len(many), "priority")
        requests = [
            self._frontend.inputs.completion(
                prompt, each, request_id=str(handle), handle=handle, priority=rank, cache_salt=cache_salt
            )
            for prompt, each, rank, handle in zip(many, chosen, order, self._handles, strict=False)
        ]
        texts = [prompt if isinstance(prompt, str) else None for prompt in many]
        return self._run_all(requests, texts, use_tqdm)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation or many, through the model's chat template.

        Args:
            messages: dicts with `role` and `content`; one conversation, or a sequence of them.
            params: as in `generate`, but the default lets an answer use the whole context.
            **template_options: `tools`, `add_generation_prompt`, `continue_final_message`, `chat_template_kwargs`.
        """
        many = cast(list[Messages], [messages] if _is_conversation(messages) else list(messages))
        chosen = _one_each(params if params is not None else SamplingParams(max_tokens=None), len(many), "params")
        requests = [
            self._frontend.inputs.chat(each, one, request_id=str(handle), handle=handle, **template_options)
            for each, one, handle in zip(many, chosen, self._handles, strict=False)
        ]
        return self._run_all(requests, [None] * len(many), use_tqdm)

    def beam_search(
        self,
        prompts: Prompt | Mapping[str, Any] | Sequence[Prompt | Mapping[str, Any]],
        params: BeamSearchParams | Sequence[BeamSearchParams],
        *,
        use_tqdm: bool = True,
        cache_salt: str = "",
    ) -> list[BeamSearchOutput]:
        """Search for the most likely answers to one prompt or many; results come in the order of the prompts.

        Args:
            prompts: text, token ids, or `{"prompt": text}` or `{"prompt_token_ids": ids}`; one or a sequence of them.
            params: one for all, or one each.

        Raises:
            InvalidRequestError: a prompt or parameter is bad; nothing has run then.
        """
        many = [_unwrapped(prompt) for prompt in _as_list([prompts] if isinstance(prompts, Mapping) else prompts)]
        chosen = [each.sampling_params() for each in _one_each(params, len(many), "params")]
        results = self.generate(many, chosen, use_tqdm=use_tqdm, cache_salt=cache_salt)
        tokenizer = self._frontend.tokenizer
        outputs = []
        for result, each in zip(results, chosen, strict=True):
            prompt = result.prompt
            if prompt is None:
                prompt = tokenizer.decode(result.prompt_token_ids) if tokenizer is not None else ""
            outputs.append(BeamSearchOutput.of(result, prompt, each.length_penalty))
        return outputs

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: Literal["last", "mean"] = "last",
        dimensions: int | None = None,
        normalize: bool = True,
        use_tqdm: bool = True,
        cache_salt: str = "",
    ) -> list[EmbeddingRequestOutput]:
        """Embed one prompt or many: the model's hidden states after its final norm, as one vector each.

        Args:
            prompts: text or token ids, one or a sequence of them.
            pooling: the last token's state, or the mean over all tokens (which cannot use cached prefixes).
            dimensions: keep the first so many.
            normalize: scale to length one, after the cut.

        Raises:
            InvalidRequestError: a prompt or parameter is bad; nothing has run then.
            RequestFailedError: an embedding is not finite.
        """
        check_dimensions(dimensions, self.info.hidden_size)
        many = _as_list(prompts)
        requests = [
            self._frontend.inputs.embedding(
                prompt, request_id=str(handle), handle=handle, pooling=pooling, cache_salt=cache_salt
            )
            for prompt, handle in zip(many, self._handles, strict=False)
        ]
        texts = [prompt if isinstance(prompt, str) else None for prompt in many]
        return [
            embedding_output(opened, dimensions, normalize) for opened in self._run_to_end(requests, texts, use_tqdm)
        ]

    def stream(self, prompt: Prompt | Messages, params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """Yield one request's output as it grows (text and ids so far); closing the iterator aborts it.

        Args:
            prompt: text, token ids, or a conversation.
            params: default `SamplingParams(max_tokens=None)`.
        """
        params = params if params is not None else SamplingParams(max_tokens=None)
        handle = next(self._handles)
        names: dict[str, Any] = {"request_id": str(handle), "handle": handle}
        if _is_conversation(prompt):
            request = self._frontend.inputs.chat(cast(Messages, prompt), params, **names)
        else:
            request = self._frontend.inputs.completion(cast(Prompt, prompt), params, **names)
        self._add(request, prompt if isinstance(prompt, str) else None)
        try:
            while self._engine.has_work:
                for update in self._step():
                    if update.handle == handle:
                        yield update.result()
                        if update.finished:
                            return
        finally:
            self._abort([handle])

    def _run_all(self, requests: list[EngineRequest], texts: list[str | None], show: bool) -> list[RequestOutput]:
        """Each request's output once it has ended."""
        return [opened.result() for opened in self._run_to_end(requests, texts, show)]

    def _run_to_end(self, requests: list[EngineRequest], texts: list[str | None], show: bool) -> list[OpenRequest]:
        """Feed the queue as it drains, and collect the requests as they end."""
        waiting = deque(zip(requests, texts, strict=True))
        done: dict[int, OpenRequest] = {}
        with BatchProgress(len(requests), show) as bar:
            try:
                while len(done) < len(requests):
                    room = self._max_queued - self._engine.stats().num_waiting
                    for _ in range(min(room, len(waiting))):
                        self._add(*waiting.popleft())
                    before, updates = len(done), self._step()
                    done |= {update.handle: update.request for update in updates if update.finished}
                    bar.advance(sum(len(update.token_ids) for update in updates), len(done) - before)
            finally:
                self._abort([request.handle for request in requests if request.handle not in done])
        return [done[request.handle] for request in requests]

    def _add(self, request: EngineRequest, text: str | None) -> None:
        self._engine.add(request)  # may refuse it
        self._frontend.outputs.add(request, text)

    def _step(self) -> list[Update]:
        """One turn of the engine; samples that a stop string ended are taken out of it."""
        outputs = self._engine.step()
        if outputs is None:
            return []
        processed = self._frontend.outputs.process(outputs)
        for handle, index in processed.aborts:
            self._engine.abort(handle, index)
        return processed.updates

    def _abort(self, handles: list[int]) -> None:
        for handle in handles:
            if self._frontend.outputs.abort(handle):
                self._engine.abort(handle)

    def close(self) -> None:
        """Free the model, its KV memory and its threads."""
        self._frontend.inputs.grammars.close()
        self._engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _as_list(prompts: Any) -> list[Any]:
    """One prompt or many → a list; a sequence of ids is one prompt."""
    if isinstance(prompts, str) or (len(prompts) > 0 and not isinstance(prompts[0], str | Sequence | Mapping)):
        return [prompts]
    return list(prompts)


def _unwrapped(prompt: Prompt | Mapping[str, Any]) -> Prompt:
    """Text or ids, out of a mapping if they are in one."""
    if not isinstance(prompt, Mapping):
        return prompt
    for key in ("prompt_token_ids", "prompt"):
        if prompt.get(key) is not None:
            return cast(Prompt, prompt[key])
    raise InvalidRequestError(
        "A prompt has neither text nor token ids.",
        fix='Give {"prompt": ...} or {"prompt_token_ids": ...}.',
        param="prompt",
    )


def _is_conversation(value: object) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and isinstance(value[0], Mapping)


def _one_each(value: T | Sequence[T], count: int, name: str) -> list[T]:
    """One value for all, or a sequence with one each."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [value] * count
    if len(value) != count:
        raise InvalidRequestError(
            f"There are {count} prompts but {len(value)} {name}.", fix="Give one for all, or one each.", param=name
        )
    return list(value)
