"""The ways in. A test that takes `entrance` runs through each of them; a new one is added to `ENTRANCES`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from octavo.errors import OctavoError
from octavo.request import SamplingParams


@dataclass(frozen=True)
class Outcome:
    """What came of a request: an HTTP status (also for Python, by the error's), and an error's fields or a text."""

    status: int
    code: str = ""
    param: str | None = None
    message: str = ""
    text: str = ""
    cached: int = 0


@dataclass(frozen=True)
class Entrance:
    """One way in.

    Attributes:
        ask: (server, prompt, parameters of sampling by their names in `SamplingParams`) to what came of it.
        takes_ids: the prompt may be token ids.
        is_http: parameters go as JSON, so types that JSON has not cannot be sent.
        lacks: parameters that it has not.
    """

    name: str
    ask: Callable[..., Outcome]
    takes_ids: bool
    is_http: bool = True
    lacks: frozenset[str] = frozenset()


def outcome_of(reply: Any, text_of: Callable[[Any], str]) -> Outcome:
    data = json.loads(reply.content)
    if reply.status_code == 200:
        usage = data.get("usage") or {}
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        cached = details.get("cached_tokens", 0)
        return Outcome(200, text=text_of(data), cached=cached)
    error = data["error"]
    return Outcome(reply.status_code, error["code"] or "", error["param"], error["message"])


def post(server: Any, path: str, body: dict[str, Any], text_of: Callable[[Any], str], headers: Any = None) -> Outcome:
    with server.client(headers=headers or {}) as client:
        content = json.dumps(body).encode()  # NaN and Infinity go as they are
        reply = client.post(path, content=content, headers={"content-type": "application/json"})
    return outcome_of(reply, text_of)


def completions(server: Any, prompt: Any, *, headers: Any = None, **params: Any) -> Outcome:
    body = {"prompt": prompt, "max_tokens": 4, **params}
    return post(server, "/v1/completions", body, lambda data: data["choices"][0]["text"], headers)


def chat(server: Any, prompt: Any, *, headers: Any = None, **params: Any) -> Outcome:
    if "logprobs" in params:
        params["top_logprobs"], params["logprobs"] = params["logprobs"], True
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 4, **params}
    return post(server, "/v1/chat/completions", body, lambda data: data["choices"][0]["message"]["content"], headers)


def responses(server: Any, prompt: Any, *, headers: Any = None, **params: Any) -> Outcome:
    body: dict[str, Any] = {"input": prompt, "max_output_tokens": params.pop("max_tokens", 4)}
    if "logprobs" in params:
        params["top_logprobs"] = params.pop("logprobs")
    return post(server, "/v1/responses", body | params, lambda data: data["output"][0]["content"][0]["text"], headers)


def messages(server: Any, prompt: Any, *, headers: Any = None, **params: Any) -> Outcome:
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 4, **params}
    if "stop" in params:
        body["stop_sequences"] = body.pop("stop")
    with server.client(headers=headers or {}) as client:
        reply = client.post("/v1/messages", content=json.dumps(body), headers={"content-type": "application/json"})
    data = json.loads(reply.content)
    if reply.status_code != 200:
        error = data["error"]
        return Outcome(reply.status_code, error["code"], error.get("param"), error["message"])
    return Outcome(200, text=data["content"][0]["text"], cached=data["usage"]["cache_read_input_tokens"])


def python(server: Any, prompt: Any, *, headers: Any = None, **params: Any) -> Outcome:
    routing = {name: params.pop(name) for name in ("cache_salt", "priority", "request_id") if name in params}
    for name in ("stop_token_ids", "allowed_token_ids", "banned_token_ids"):
        if isinstance(params.get(name), list):
            params[name] = tuple(params[name])

    async def main() -> Any:
        result = None
        async for output in server.llm.generate(prompt, SamplingParams(**{"max_tokens": 4, **params}), **routing):
            result = output
        return result

    try:
        output = asyncio.run_coroutine_threadsafe(main(), server.loop).result(20)
    except OctavoError as error:
        return Outcome(error.status, error.code, error.param, error.message)
    return Outcome(200, text=output.outputs[0].text, cached=output.num_cached_tokens)


def embeddings(server: Any, prompt: Any, *, headers: Any = None, max_tokens: Any = None, **params: Any) -> Outcome:
    return post(server, "/v1/embeddings", {"input": prompt, **params}, lambda data: "", headers)


def tokenize(server: Any, prompt: Any, *, headers: Any = None, max_tokens: Any = None, **params: Any) -> Outcome:
    return post(server, "/tokenize", {"prompt": prompt, **params}, lambda data: "", headers)


_SAMPLING = frozenset(SamplingParams.__struct_fields__)
_OF_MESSAGES = frozenset({"max_tokens", "temperature", "top_p", "top_k", "stop"})

ENTRANCES = [
    Entrance("completions", completions, takes_ids=True),
    Entrance("chat", chat, takes_ids=False, lacks=frozenset({"prompt_logprobs"})),
    Entrance("responses", responses, takes_ids=False, lacks=frozenset({"prompt_logprobs"})),
    Entrance("messages", messages, takes_ids=False, lacks=_SAMPLING - _OF_MESSAGES),
    Entrance("python", python, takes_ids=True, is_http=False),
    Entrance("embeddings", embeddings, takes_ids=True, lacks=_SAMPLING),
    Entrance("tokenize", tokenize, takes_ids=False, lacks=_SAMPLING | {"cache_salt", "priority"}),
]
