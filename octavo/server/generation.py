"""The two routes that generate: from a body to engine requests."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from octavo import __version__
from octavo.async_llm import AsyncLLM, new_id
from octavo.engine.info import EngineInfo
from octavo.errors import InvalidRequestError, ModelNotFoundError
from octavo.frontend.update_stream import UpdateStream
from octavo.request import EngineRequest, SamplingParams
from octavo.server.answer import answer
from octavo.server.chat_parts import ChatParts, Formats, PartsRendering
from octavo.server.http import Exchange
from octavo.server.limits import check_choices
from octavo.server.protocol import ChatBody, CompletionBody, GenerationBody, decode, decoder
from octavo.server.protocol_fields import banned_words
from octavo.server.render import ChatRendering, CompletionRendering
from octavo.server.tools import tool_request

_MAX_PENDING = 4096  # updates that a slow reader may be behind, beside what the socket's buffer holds,
_MAX_PENDING_EACH = 64  # or so many for each choice


class Generation:
    """Serves completions and chat completions.

    Args:
        names: of the model, the first of which is the proper one.
        formats: how it writes calls and reasoning.
        max_choices: most sequences of one request.
        defaults: fields of `SamplingParams` for requests that do not name them.
    """

    def __init__(
        self,
        llm: AsyncLLM,
        names: tuple[str, ...],
        formats: Formats,
        max_choices: int = 1024,
        defaults: Mapping[str, Any] | None = None,
    ):
        self._llm = llm
        self._formats = formats
        self._max_choices = max_choices
        self._defaults = dict(defaults or {})
        self._names = names
        self._chat = decoder(ChatBody)
        self._completion = decoder(CompletionBody)
        self._fingerprint = fingerprint(llm.info)

    async def completions(self, exchange: Exchange, data: bytes) -> None:
        """POST /v1/completions."""
        body = decode(self._completion, data)
        body.check()
        model = self._model(body)
        prompts = body.prompts()
        check_choices(len(prompts), body.best_of or body.n or 1, self._max_choices)
        silent = bool(body.echo) and body.max_tokens == 0
        changes: dict[str, Any] = {"logprobs": body.logprobs}
        if silent:
            changes["max_tokens"] = 1
        if body.chooses:
            changes |= {"n": body.best_of, "logprobs": body.logprobs or 0}
        if body.echo and body.logprobs is not None and body.prompt_logprobs is None:
            changes["prompt_logprobs"] = body.logprobs
        params = self._params(body, **changes)
        reply_id = "cmpl-" + (body.request_id or new_id())
        requests: list[EngineRequest] = []
        for place, prompt in enumerate(prompts):
            made = await self._llm.completion_request(
                prompt,
                params,
                request_id=f"{reply_id}-{place}",
                priority=body.priority or 0,
                cache_salt=body.cache_salt or "",
                add_special_tokens=body.add_special_tokens is not False,
                truncate_prompt_tokens=body.truncate_prompt_tokens,
            )
            requests.append(made)
            if len(prompts) > 1:
                await asyncio.sleep(0)  # other requests may have their turn
        if body.truncate_prompt_tokens is not None:
            prompts = [made.prompt_token_ids for made in requests]
        echoes = self._echoes(prompts) if body.echo else []
        stream = self._submit(requests)
        rendering = CompletionRendering(
            self._envelope(reply_id, model, body),
            body,
            stream.opened,
            self._llm.frontend.tokenizer,
            echoes=echoes,
            silent=silent,
        )
        await answer(exchange, stream, rendering, bool(body.stream))

    async def chat(self, exchange: Exchange, data: bytes) -> None:
        """POST /v1/chat/completions."""
        body = decode(self._chat, data)
        body.check()
        model = self._model(body)
        reply_id = "chatcmpl-" + (body.request_id or new_id())
        stream, parts = await self.open_chat(body, reply_id)
        facts = (self._envelope(reply_id, model, body), body, stream.opened, self._llm.frontend.tokenizer)
        rendering = ChatRendering(*facts) if parts is None else PartsRendering(*facts, parts=parts)
        await answer(exchange, stream, rendering, bool(body.stream))

    async def open_chat(self, body: ChatBody, reply_id: str) -> tuple[UpdateStream, ChatParts | None]:
        """Start to answer a conversation, for every API that has them; `check` of the body comes before.

        Returns:
            What comes of it, to be closed; and how to read the answer, None if all of it is content.

        Raises:
            InvalidRequestError: names the field of `ChatBody`.
            OctavoError: as of `AsyncLLM.submit`.
        """
        limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        params = self._params(body, logprobs=(body.top_logprobs or 0) if body.logprobs else None)
        if limit is None:
            limit = self._defaults.get("max_tokens")  # None: up to the model's context
        params = msgspec.structs.replace(params, max_tokens=limit)
        tools = tool_request(body.tools, body.tool_choice, body.parallel_tool_calls)
        parts = self._formats.parts(tools, include_reasoning=body.include_reasoning is not False)
        if parts is not None:
            params = parts.adjusted(params, tools, self._llm.frontend.tokenizer)
        request = await self._llm.chat_request(
            body.messages or [],
            params,
            request_id=reply_id,
            tools=tools.shown if tools is not None else None,
            add_generation_prompt=body.add_generation_prompt is not False,
            continue_final_message=bool(body.continue_final_message),
            chat_template_kwargs=body.template_variables(self._llm.frontend.inputs.template_source),
            truncate_prompt_tokens=body.truncate_prompt_tokens,
            priority=body.priority or 0,
            cache_salt=body.cache_salt or "",
        )
        return self._submit([request]), parts

    def _submit(self, requests: list[EngineRequest]) -> UpdateStream:
        num_choices = len(requests) * requests[0].params.n
        return self._llm.submit(requests, max_pending=max(_MAX_PENDING, _MAX_PENDING_EACH * num_choices))

    def _model(self, body: GenerationBody) -> str:
        """The name to answer with; ModelNotFoundError for one that is not served here."""
        return served_model(body.model, self._names)

    def _params(self, body: GenerationBody, **changes: Any) -> SamplingParams:
        if body.bad_words:
            banned = banned_words(body.bad_words, self._llm.frontend.tokenizer)
            changes["banned_token_ids"] = (*(body.banned_token_ids or ()), *banned)
        return body.params(self._defaults, **changes)

    def _envelope(self, reply_id: str, model: str, body: GenerationBody) -> dict[str, Any]:
        tier = {"service_tier": "default"} if body.service_tier is not None else {}
        return {
            "id": reply_id,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": self._fingerprint,
            **tier,
        }

    def _echoes(self, prompts: list[str | list[int]]) -> list[str]:
        tokenizer = self._llm.frontend.tokenizer
        if tokenizer is None:
            raise InvalidRequestError(
                "echo needs text, and the server has no tokenizer.", fix="Leave it out.", param="echo"
            )
        return [prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in prompts]


def served_model(asked: str | None, names: tuple[str, ...]) -> str:
    """The name to answer with; ModelNotFoundError for one that is not served here."""
    if asked is None:
        return names[0]
    if asked not in names:
        raise ModelNotFoundError(
            f"The model {asked[:200]!r} is not served here.", fix=f"Served are: {', '.join(names)}.", param="model"
        )
    return asked


def fingerprint(info: EngineInfo) -> str:
    """`system_fingerprint`: changes if the numbers may change."""
    facts = "|".join([__version__, info.model, info.architecture, info.device, info.dtype, info.quantization])
    return "octavo-" + hashlib.sha256(facts.encode()).hexdigest()[:12]
