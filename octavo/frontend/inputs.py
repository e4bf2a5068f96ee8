"""`InputProcessor`: what a user asks for, checked and turned into an `EngineRequest`."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import msgspec

from octavo.errors import ContextLengthError, InvalidRequestError
from octavo.frontend.chat_encoder import ChatEncoder
from octavo.frontend.chat_template import ChatTemplate, check_messages, user_strings
from octavo.frontend.grammar import vocabulary_of
from octavo.frontend.parsers.names import get
from octavo.frontend.parsers.prompting import in_words, needs_words
from octavo.frontend.tokenizer import Tokenizer
from octavo.grammar.checker import GrammarChecker
from octavo.request import EngineRequest, SamplingParams
from octavo.validation import resolve_max_tokens, validate_params, validate_prompt, validate_routing


class InputProcessor:
    """Makes engine requests for one model. Thread-safe.

    Args:
        tokenizer: None where only token ids are served.
        vocab_size: width of the logits.
        max_model_len: longest sequence, prompt and output.
        seed: requests that bring no seed get one drawn from a generator with this seed, so a run can be repeated;
            None seeds it from the operating system.
        chat_template: Jinja source that replaces the model's own.
        max_logprobs: most top logprobs a request may ask for.
        default_max_tokens: most tokens of an answer whose request names no limit; None is all that the context leaves.
        adapters: names that requests may choose.
        structured_outputs_timeout: seconds that a grammar may take to compile.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        *,
        vocab_size: int,
        max_model_len: int,
        seed: int | None = None,
        chat_template: str | None = None,
        max_logprobs: int = 20,
        default_max_tokens: int | None = None,
        adapters: Collection[str] = (),
        structured_outputs_timeout: float = 5.0,
    ):
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.max_model_len = max_model_len
        self.max_logprobs = max_logprobs
        self.default_max_tokens = default_max_tokens
        self.eos_token_ids = tokenizer.eos_token_ids if tokenizer else ()
        self._adapters = frozenset(adapters)
        self.tool_format = get("hermes")  # how tools are put to a model whose template knows none
        self._seeds = random.Random(os.urandom(32) if seed is None else seed)  # noqa: S311 - sampling, not secrets
        self.grammars = GrammarChecker(lambda: vocabulary_of(tokenizer, vocab_size), timeout=structured_outputs_timeout)
        self._chats = _chat_encoders(tokenizer, chat_template) if tokenizer else {}

    @property
    def template_source(self) -> str:
        """The chat templates' Jinja, that for tools first; "" without any."""
        names = sorted(self._chats, key=lambda name: name != "tool_use")
        return "\n".join(self._chats[name].template.source for name in names)

    @property
    def chat_template(self) -> str | None:
        """The usual chat template's Jinja, the operator's or the model's own."""
        return self._chats["default"].template.source if "default" in self._chats else None

    def completion(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        handle: int,
        priority: int = 0,
        cache_salt: str = "",
        adapter: str = "",
        arrival_time: float | None = None,
        add_special_tokens: bool = True,
        truncate_prompt_tokens: int | None = None,
    ) -> EngineRequest:
        """A request to go on from a text or from token ids.

        Args:
            handle: unique among the open requests of this front end.
            arrival_time: `time.monotonic()`; None is now.
            add_special_tokens: put before a text what the model expects there (a BOS, or nothing).
            truncate_prompt_tokens: keep the last so many of the prompt's ids; -1: as many as there is room for.

        Raises:
            InvalidRequestError: the first thing that cannot be served, named by its field.
            ContextLengthError: prompt and output do not fit the context.
        """
        self._check(params, request_id, priority, cache_salt, adapter)
        keep = self._num_kept(truncate_prompt_tokens, params.max_tokens)
        ids = self._prompt_ids(prompt, add_special_tokens, keep, answers=True)
        return self._request(ids, params, request_id, handle, priority, cache_salt, adapter, arrival_time)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams,
        *,
        request_id: str,
        handle: int,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
        cache_salt: str = "",
        adapter: str = "",
        arrival_time: float | None = None,
        truncate_prompt_tokens: int | None = None,
    ) -> EngineRequest:
        """A request to answer a conversation; arguments as of `completion` and `ChatTemplate.render`.

        Control tokens that the messages spell stay text (see `octavo.frontend.chat_encoder`).

        Raises:
            InvalidRequestError: there is no chat template, it refuses the conversation, or as in `completion`.
            ContextLengthError: prompt and output do not fit the context.
        """
        self._check(params, request_id, priority, cache_salt, adapter)
        _, ids = self.render_chat(
            messages,
            tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template_kwargs=chat_template_kwargs,
            keep=self._num_kept(truncate_prompt_tokens, params.max_tokens),
        )
        return self._request(ids, params, request_id, handle, priority, cache_salt, adapter, arrival_time)

    def embedding(
        self,
        prompt: str | Sequence[int],
        *,
        request_id: str,
        handle: int,
        pooling: Literal["last", "mean"] = "last",
        priority: int = 0,
        cache_salt: str = "",
        adapter: str = "",
        add_special_tokens: bool = True,
        truncate_prompt_tokens: int | None = None,
    ) -> EngineRequest:
        """A request for the embedding of a text or of token ids; arguments and errors as of `completion`.

        Args:
            pooling: the last token's hidden state, or the mean of all.
        """
        if pooling not in ("last", "mean"):
            raise InvalidRequestError(
                f"pooling cannot be {str(pooling)[:40]!r}.", fix='It is "last" or "mean".', param="pooling"
            )
        params = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False, seed=0)
        self._check(params, request_id, priority, cache_salt, adapter)
        keep = self._num_kept(truncate_prompt_tokens, 0)
        ids = self._prompt_ids(prompt, add_special_tokens, keep, answers=False)
        return EngineRequest(
            handle=handle,
            request_id=request_id,
            prompt_token_ids=ids,
            params=params,
            priority=priority,
            arrival_time=time.monotonic(),
            cache_salt=cache_salt,
            adapter=adapter,
            pooling=pooling,
        )

    def _num_kept(self, truncate_prompt_tokens: int | None, max_tokens: int | None) -> int | None:
        """How many ids of a prompt are kept; None is all."""
        keep = truncate_prompt_tokens
        if keep is None:
            return None
        if type(keep) is not int or not (keep == -1 or 1 <= keep <= self.max_model_len):
            raise InvalidRequestError(
                f"truncate_prompt_tokens cannot be {str(keep)[:24]}.",
                fix=f"It is -1, or 1 to {self.max_model_len}.",
                param="truncate_prompt_tokens",
            )
        return max(1, self.max_model_len - (1 if max_tokens is None else max_tokens)) if keep == -1 else keep

    def _prompt_ids(
        self, prompt: str | Sequence[int], add_special_tokens: bool, keep: int | None, *, answers: bool
    ) -> list[int]:
        if isinstance(prompt, str):
            return self._encode(prompt, add_special_tokens, keep, answers=answers)
        given: Any = prompt.tolist() if hasattr(prompt, "tolist") else prompt  # numpy and torch
        if keep is not None and isinstance(given, list):
            given = given[-keep:]
        validate_prompt(given, self.vocab_size, self.max_model_len, answers=answers)
        return list(given)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        keep: int | None = None,
    ) -> tuple[str, list[int]]:
        """A conversation's prompt, as text and as token ids, the last `keep` of them; errors as of `chat`."""
        self._check_chars(sum(map(len, user_strings([messages, chat_template_kwargs]))), "messages")
        text, ids = self.encode_chat(
            messages,
            tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template_kwargs=chat_template_kwargs,
        )
        if keep is not None:
            ids = ids[-keep:]
        validate_prompt(ids, self.vocab_size, self.max_model_len)
        return text, ids

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[str, list[int]]:
        """The same, however long it is. Raises InvalidRequestError."""
        encoder = self._chats.get("tool_use" if tools else "default") or self._chats.get("default")
        if encoder is None:
            raise InvalidRequestError(
                "This model has no chat template" + ("." if self.tokenizer else ": the server has no tokenizer."),
                fix="Use /v1/completions, or start the server with --chat-template.",
                param="messages",
            )
        if needs_words(messages, tools) and not encoder.template.takes_tools:
            check_messages(messages)
            messages, tools = in_words(messages, tools, self.tool_format), None
        return encoder.encode(
            messages,
            tools,
            kwargs=chat_template_kwargs,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )

    def _check(self, params: SamplingParams, request_id: str, priority: int, cache_salt: str, adapter: str) -> None:
        validate_routing(cache_salt=cache_salt, priority=priority, request_id=request_id)
        validate_params(
            params,
            vocab_size=self.vocab_size,
            max_model_len=self.max_model_len,
            max_logprobs=self.max_logprobs,
            eos_token_ids=self.eos_token_ids,
            has_tokenizer=self.tokenizer is not None,
        )
        if adapter and adapter not in self._adapters:
            raise InvalidRequestError(
                f"There is no adapter {adapter!r}.",
                fix=f"Loaded are: {', '.join(sorted(self._adapters)) or 'none'}.",
                param="model",
            )

    def _encode(self, text: str, add_special_tokens: bool, keep: int | None, *, answers: bool) -> list[int]:
        if self.tokenizer is None:
            raise InvalidRequestError(
                "The server has no tokenizer, so it takes no text.",
                fix="Send token ids, or start it without --skip-tokenizer-init.",
                param="prompt",
            )
        self._check_chars(len(text), "prompt")
        ids = self.tokenizer.encode(text, add_special_tokens)
        if keep is not None:
            ids = ids[-keep:]
        validate_prompt(ids, self.vocab_size, self.max_model_len, answers=answers)
        return ids

    def _check_chars(self, num_chars: int, param: str) -> None:
        """Refuse text that cannot fit before it costs anything: no token stands for more than the longest one."""
        if self.tokenizer is None or num_chars <= self.max_model_len:
            return
        longest = self.max_model_len * self.tokenizer.max_token_chars
        if num_chars > longest:
            raise ContextLengthError(
                f"The prompt has {num_chars} characters; the model's context of {self.max_model_len} tokens holds at "
                f"most {longest}, were they all of the longest kind.",
                fix="Shorten the prompt.",
                param=param,
            )

    def _request(
        self,
        ids: list[int],
        params: SamplingParams,
        request_id: str,
        handle: int,
        priority: int,
        cache_salt: str,
        adapter: str,
        arrival_time: float | None,
    ) -> EngineRequest:
        resolved = msgspec.structs.replace(
            params,
            max_tokens=resolve_max_tokens(params, len(ids), self.max_model_len, self.default_max_tokens),
            seed=self._seeds.getrandbits(63) if params.seed is None else params.seed,
            stop=tuple(params.stop),
            stop_token_ids=tuple(params.stop_token_ids),
        )
        spec = params.structured_outputs
        return EngineRequest(
            handle=handle,
            request_id=request_id,
            prompt_token_ids=ids,
            params=resolved,
            eos_token_ids=self.eos_token_ids,
            priority=priority,
            arrival_time=time.monotonic() if arrival_time is None else arrival_time,
            cache_salt=cache_salt,
            adapter=adapter,
            grammar=self.grammars.check(spec) if spec is not None else "",
        )


def _chat_encoders(tokenizer: Tokenizer, source: str | None) -> dict[str, ChatEncoder]:
    """Encoders by template name; a template given by the operator replaces all of the model's."""
    sources = dict(tokenizer.facts.chat_templates) if source is None else {"default": source}
    return {
        name: ChatEncoder(tokenizer, ChatTemplate(template, tokenizer.facts.special_tokens))
        for name, template in sources.items()
    }
