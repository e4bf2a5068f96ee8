"""`LLM`: a model in this process, for batches and scripts."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import Any

from octavo.config import EngineConfig
from octavo.engine.core import Engine
from octavo.engine.info import EngineInfo
from octavo.engine.phases import Progress
from octavo.errors import InvalidRequestError
from octavo.frontend.load import Frontend, load_frontend
from octavo.progress import BatchProgress
from octavo.request import EngineRequest, EngineStats, RequestOutput, SamplingParams

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]


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
        self._engine = Engine(config, progress)
        self._frontend: Frontend = load_frontend(config, self._engine.info)
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
        many = as_prompts(prompts)
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
        many: list[Messages] = [messages] if _is_conversation(messages) else list(messages)  # type: ignore[list-item, arg-type]
        chosen = _one_each(params if params is not None else SamplingParams(max_tokens=None), len(many), "params")
        requests = [
            self._frontend.inputs.chat(each, one, request_id=str(handle), handle=handle, **template_options)
            for each, one, handle in zip(many, chosen, self._handles, strict=False)
        ]
        return self._run_all(requests, [None] * len(many), use_tqdm)

    def stream(self, prompt: Prompt | Messages, params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """Yield one request's output as it grows (text and ids so far); closing the iterator aborts it.

        Args:
            prompt: text, token ids, or a conversation.
            params: default `SamplingParams(max_tokens=None)`.
        """
        params = params if params is not None else SamplingParams(max_tokens=None)
        handle = next(self._handles)
        if _is_conversation(prompt):
            request = self._frontend.inputs.chat(prompt, params, request_id=str(handle), handle=handle)  # type: ignore[arg-type]
        else:
            request = self._frontend.inputs.completion(prompt, params, request_id=str(handle), handle=handle)  # type: ignore[arg-type]
        self._add(request, prompt if isinstance(prompt, str) else None)
        try:
            while self._engine.has_work:
                for output in self._step():
                    if output.handle == handle:
                        yield output.result()
                        if output.finished:
                            return
        finally:
            self._abort([handle])

    def close(self) -> None:
        """Free the model, its KV memory and its threads."""
        self._engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
