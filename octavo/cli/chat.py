"""`octavo chat`: talk to a running server, Octavo's or any other with the OpenAI API."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from octavo.cli.conversation import Ask, Message, answer_once, converse, opening
from octavo.cli.options import config_options
from octavo.cli.sampling import SamplingOptions, sampling_settings
from octavo.cli.terminal import Answer
from octavo.cli.verbs import is_verbose, verb
from octavo.errors import ConfigError, InvalidRequestError, OctavoError, OverloadedError, RequestFailedError

if TYPE_CHECKING:
    import httpx

_CONNECT_SECONDS = 10.0
_SILENCE_SECONDS = 600.0  # a long prompt on a slow machine answers late
_OCTAVO_ONLY = ("top_k", "min_p", "repetition_penalty", "ignore_eos")  # not in OpenAI's own API: sent if set


class ServerUnreachableError(OctavoError):
    """No server answers at the URL."""

    code = "server_unreachable"
    exit_code = 6


@verb("chat")
@click.argument("words", nargs=-1, metavar="[PROMPT]...")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The server's address.")
@click.option("--model", metavar="NAME", help="Which of its models; default: the first it lists.")
@click.option("--api-key", metavar="KEY", help="Key to send; default: the environment's OPENAI_API_KEY.")
@click.option("--system", metavar="TEXT", help="System message that the conversation starts with.")
@click.option("--stats", is_flag=True, help="Print time to first token and tokens a second after each answer.")
@config_options(SamplingOptions)
@click.pass_context
def chat(
    ctx: click.Context,
    /,
    words: tuple[str, ...],
    url: str,
    model: str | None,
    api_key: str | None,
    system: str | None,
    stats: bool,
    **_: Any,
) -> None:
    """Talk to a running server. With a PROMPT, or with text piped in, answer once; otherwise chat."""
    import httpx

    body = request_body(sampling_settings(ctx))
    prompt = " ".join(words) or (None if sys.stdin.isatty() else sys.stdin.read().strip())
    if prompt == "":
        raise ConfigError("There is no prompt: nothing is piped in.", fix="Give one, or start it at a terminal.")
    key = api_key or os.environ.get("OPENAI_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS)
    with httpx.Client(base_url=root_of(url), headers=headers, timeout=timeout) as client:
        body["model"] = model or _first_model(client)
        ask: Ask = lambda messages, answer: _stream(client, {**body, "messages": messages}, answer)  # noqa: E731
        stats = stats or is_verbose(ctx)
        if prompt is None:
            converse(ask, system=system, stats=stats)
        else:
            answer_once(ask, [*opening(system), {"role": "user", "content": prompt}], stats=stats)


def root_of(url: str) -> str:
    """The server's root from what people paste: with or without scheme, /v1, and a slash at the end."""
    url = url if "://" in url else f"http://{url}"
    return url.rstrip("/").removesuffix("/v1")


def request_body(sampling: dict[str, Any]) -> dict[str, Any]:
    """Sampling options as fields of a chat request; those that OpenAI's API lacks only where they do something."""
    neutral = {name: field.default for name, field in SamplingOptions.__dataclass_fields__.items()}
    body = {
        name: value
        for name, value in sampling.items()
        if value is not None and value != () and (name not in _OCTAVO_ONLY or value != neutral[name])
    }
    return {**body, "stream": True, "stream_options": {"include_usage": True}}


def _first_model(client: httpx.Client) -> str:
    with _explained(client):
        reply = client.get("/v1/models")
        _check(reply.status_code, reply.content)
        models = reply.json().get("data") or []
    if not models:
        raise ServerUnreachableError(f"The server at {client.base_url} lists no model.", fix="Name one with --model.")
    return str(models[0]["id"])


def _stream(client: httpx.Client, body: dict[str, Any], answer: Answer) -> Iterator[str]:
    """Pieces of text of one answer, as the server sends them."""
    with _explained(client), client.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            _check(reply.status_code, reply.read())
        for line in reply.iter_lines():
            if not line.startswith("data:"):
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                return
            yield from _pieces(json.loads(data), answer)


def _pieces(chunk: Message, answer: Answer) -> Iterator[str]:
    """The text of one chunk; keeps its counts."""
    if error := chunk.get("error"):
        raise RequestFailedError(f"The server failed on this request: {error.get('message', error)}")
    if usage := chunk.get("usage"):
        answer.tokens = usage.get("completion_tokens", answer.tokens)
        answer.prompt_tokens = usage.get("prompt_tokens")
        answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    for choice in chunk.get("choices", ()):
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        text = (choice.get("delta") or {}).get("content")
        if text:
            if answer.first_token is None:
                answer.first_token = time.perf_counter()
            yield text


def _check(status: int, content: bytes) -> None:
    """Raise what an error reply means."""
    if status == 200:
        return
    try:
        message = str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = content[:500].decode("utf-8", "replace") or f"HTTP status {status}"
    if status in (401, 403):
        raise ConfigError(f"The server refuses: {message}", fix="Give its key with --api-key.", param="api_key")
    if status in (429, 503):
        raise OverloadedError(f"The server is busy: {message}", fix="Try again in a moment.")
    raise InvalidRequestError(f"The server answered {status}: {message}")


@contextmanager
def _explained(client: httpx.Client) -> Iterator[None]:
    """Turn a broken connection into an error with a fix."""
    import httpx

    try:
        yield
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise ServerUnreachableError(
            f"No answer from {client.base_url}: {error}",
            fix="Start a server with `octavo serve`, or name its address with --url.",
            param="url",
        ) from error
