"""Load on any OpenAI-compatible server: arrivals, streams, and what their clients see."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from octavo.bench.http_stream import Endpoint, HttpError, get, stream_events
from octavo.bench.metrics import RequestTimes, summarize
from octavo.bench.record import environment
from octavo.bench.workloads import BenchRequest
from octavo.errors import ConfigError

_WORDS = ("river", "stone", "green", "seven", "lamp", "under", "paper", "quick", "north", "apple", "sleep", "metal")


@dataclass(frozen=True, kw_only=True)
class Load:
    """How requests arrive.

    Attributes:
        url: the server's root.
        model: the name it serves.
        chat: use chat completions (the prompt is random words then), else completions with token ids.
        request_rate: mean requests a second; infinity sends all at once.
        burstiness: shape of the gamma-distributed gaps; 1 is a Poisson process, less is burstier.
        max_concurrency: most requests open at one time.
        timeout: seconds after which a request counts as failed.
        extra: further fields of each request's body.
    """

    url: str
    model: str
    chat: bool = False
    api_key: str | None = None
    request_rate: float = float("inf")
    burstiness: float = 1.0
    max_concurrency: int | None = None
    seed: int = 0
    timeout: float = 3600.0
    extra: dict[str, Any] = field(default_factory=dict)


Progress = Callable[[RequestTimes], None]


async def models_of(url: str, api_key: str | None) -> list[dict[str, Any]]:
    """What the server lists at /v1/models.

    Raises:
        ConfigError: no server answers there.
    """
    try:
        reply = json.loads(await get(Endpoint.of(url, "/v1/models"), api_key))
        models: list[dict[str, Any]] = reply["data"]
    except (OSError, HttpError, asyncio.IncompleteReadError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"No OpenAI-compatible server answers at {url}: {error}.",
            fix="Start one, or name its address with --base-url.",
            param="base_url",
        ) from error
    return models


def measure(load: Load, workload: Sequence[BenchRequest], progress: Progress | None = None) -> list[RequestTimes]:
    """Send the workload and return each request's times, in the order of the workload."""
    return asyncio.run(_send_all(load, workload, progress or (lambda _: None)))


def result_of(
    load: Load, name: str, times: Sequence[RequestTimes], goodput: dict[str, float], *, modulo: bool
) -> dict[str, Any]:
    """The run's numbers, ready for JSON."""
    duration = max(request.start + request.latency for request in times) - min(request.start for request in times)
    settings = {key: value for key, value in asdict(load).items() if key != "api_key"}
    if load.request_rate == float("inf"):
        settings["request_rate"] = "inf"  # JSON has no infinity
    return {
        "benchmark": "serve",
        **environment(),
        "workload": name,
        "num_requests": len(times),
        "ids_taken_modulo_vocabulary": modulo,
        "load": settings,
        **summarize(times, max(duration, 1e-9), goodput),
        "requests": [asdict(request) for request in times],
    }


async def _send_all(load: Load, workload: Sequence[BenchRequest], progress: Progress) -> list[RequestTimes]:
    endpoint = Endpoint.of(load.url, "/v1/chat/completions" if load.chat else "/v1/completions")
    limit = asyncio.Semaphore(load.max_concurrency or max(1, len(workload)))
    bodies = [_body(load, request) for request in workload]  # before the clock starts
    gaps = arrival_gaps(load, len(workload))
    begin = time.perf_counter()

    async def one(request: BenchRequest, body: bytes) -> RequestTimes:
        async with limit:
            times = await _send(endpoint, load, body, len(request.prompt_token_ids), begin)
        progress(times)
        return times

    tasks = []
    due = begin
    for request, body, gap in zip(workload, bodies, gaps, strict=True):
        due += gap
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(request, body)))
    return list(await asyncio.gather(*tasks))


def arrival_gaps(load: Load, count: int) -> list[float]:
    """Seconds before each request; the first comes at once."""
    if load.request_rate == float("inf"):
        return [0.0] * count
    rng = random.Random(load.seed)  # noqa: S311 - arrivals, not secrets
    scale = 1.0 / (load.request_rate * load.burstiness)
    return [0.0] + [rng.gammavariate(load.burstiness, scale) for _ in range(count - 1)]


async def _send(endpoint: Endpoint, load: Load, body: bytes, input_len: int, begin: float) -> RequestTimes:
    """One request, timed. Every failure is kept in `error`; none raises."""
    start = last = time.perf_counter()
    times = RequestTimes(input_len=input_len, start=start - begin)
    num_chunks, usage = 0, None
    try:
        async with asyncio.timeout(load.timeout):
            async for event in stream_events(endpoint, body, load.api_key):
                chunk = orjson.loads(event)
                if "error" in chunk:
                    raise HttpError(str(chunk["error"])[:500])
                usage = chunk.get("usage") or usage
                if not _has_text(chunk):
                    continue
                now = time.perf_counter()
                if num_chunks == 0:
                    times.ttft = now - start
                else:
                    times.itl.append(now - last)
                last = now
                num_chunks += 1
    except TimeoutError:
        times.error = f"no end within {load.timeout:g} s"
    except (OSError, HttpError, asyncio.IncompleteReadError, ValueError) as error:
        times.error = f"{type(error).__name__}: {error}"
    times.latency = last - start if num_chunks else time.perf_counter() - start
    _read_usage(times, usage, num_chunks)
    if not times.error and num_chunks == 0:
        times.error = "the stream ended without a token"
    return times


def _has_text(chunk: dict[str, Any]) -> bool:
    """Whether a chunk brings output; the text may be empty where half a character has to wait."""
    for choice in chunk.get("choices") or ():
        if "text" in choice:
            return True
        delta = choice.get("delta") or {}
        content = delta.get("content")
        if content or (content == "" and "role" not in delta):  # the opening chunk has a role and no text
            return True
    return False


def _read_usage(times: RequestTimes, usage: dict[str, Any] | None, num_chunks: int) -> None:
    """Take counts from the server; without them a chunk counts as a token."""
    times.output_len = (usage or {}).get("completion_tokens") or num_chunks
    if usage is not None:
        times.input_len = usage.get("prompt_tokens") or times.input_len
        times.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")


def _body(load: Load, request: BenchRequest) -> bytes:
    fields: dict[str, Any] = {
        "model": load.model,
        "max_tokens": request.output_len,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "temperature": 0.0,
    }
    if load.chat:
        text = " ".join(_WORDS[token % len(_WORDS)] for token in request.prompt_token_ids)
        fields["messages"] = [{"role": "user", "content": text}]
    else:
        fields["prompt"] = request.prompt_token_ids
    return orjson.dumps({**fields, **load.extra})
