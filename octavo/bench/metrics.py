"""Definitions of what is measured on a stream of tokens, as `vllm bench serve` has them.

TTFT: from sending the request to its first chunk with text. ITL: the gaps between chunks. E2EL: to the last chunk.
TPOT: (E2EL - TTFT) / (output tokens - 1), of requests with more than one token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from octavo.errors import ConfigError

GOODPUT_METRICS = ("ttft", "tpot", "e2el")


@dataclass
class RequestTimes:
    """One request as a client saw it. Times in seconds; `ttft` and `latency` count from `start`.

    Attributes:
        start: since the benchmark's start.
        itl: gap before each chunk but the first.
        error: why it failed; empty if it did not.
    """

    input_len: int
    start: float = 0.0
    ttft: float = 0.0
    latency: float = 0.0
    itl: list[float] = field(default_factory=list)
    output_len: int = 0
    cached_tokens: int | None = None
    error: str = ""

    @property
    def tpot(self) -> float | None:
        """Seconds for each output token after the first; None with fewer than two."""
        if self.output_len < 2:
            return None
        return (self.latency - self.ttft) / (self.output_len - 1)


def spread(values: Sequence[float], *, scale: float = 1.0) -> dict[str, float]:
    """Mean, median, 99th percentile, least and greatest, times `scale`; zeros for no values."""
    if not values:
        return dict.fromkeys(("mean", "p50", "p99", "min", "max"), 0.0)
    data = np.asarray(values, np.float64) * scale
    return {
        "mean": float(data.mean()),
        "p50": float(np.percentile(data, 50)),
        "p99": float(np.percentile(data, 99)),
        "min": float(data.min()),
        "max": float(data.max()),
    }


def summarize(
    requests: Sequence[RequestTimes], duration: float, goodput: Mapping[str, float] | None = None
) -> dict[str, object]:
    """The numbers of a run against a server; times in milliseconds, rates a second.

    Args:
        duration: seconds from the first request's start to the last one's end.
        goodput: bounds in milliseconds on ttft, tpot or e2el that a good request keeps.
    """
    done = [request for request in requests if not request.error]
    tpots = [request.tpot for request in done if request.tpot is not None]
    output_tokens = sum(request.output_len for request in done)
    input_tokens = sum(request.input_len for request in done)
    summary: dict[str, object] = {
        "completed": len(done),
        "failed": len(requests) - len(done),
        "duration_s": duration,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "requests_per_s": len(done) / duration,
        "output_tokens_per_s": output_tokens / duration,
        "total_tokens_per_s": (input_tokens + output_tokens) / duration,
        "peak_concurrency": peak_concurrency(done),
        "ttft_ms": spread([request.ttft for request in done], scale=1e3),
        "tpot_ms": spread(tpots, scale=1e3),
        "itl_ms": spread([gap for request in done for gap in request.itl], scale=1e3),
        "e2el_ms": spread([request.latency for request in done], scale=1e3),
    }
    if goodput:
        summary["goodput"] = dict(goodput)
        summary["good_requests_per_s"] = sum(_is_good(request, goodput) for request in done) / duration
    return summary


def peak_concurrency(requests: Sequence[RequestTimes]) -> int:
    """Most requests open at one time."""
    events = sorted(
        [(request.start, 1) for request in requests] + [(request.start + request.latency, -1) for request in requests]
    )
    open_now = most = 0
    for _, change in events:
        open_now += change
        most = max(most, open_now)
    return most


def parse_goodput(bounds: Sequence[str]) -> dict[str, float]:
    """`ttft:200 tpot:50` as a mapping of milliseconds.

    Raises:
        ConfigError: a bound is not written like this.
    """
    parsed = {}
    for bound in bounds:
        name, _, value = bound.partition(":")
        try:
            parsed[name] = float(value)
        except ValueError:
            parsed[name] = -1.0
        if name not in GOODPUT_METRICS or not 0 < parsed[name] < float("inf"):
            raise ConfigError(
                f"--goodput cannot be {bound!r}.",
                fix=f"Write metric:milliseconds, as ttft:200; metrics are {', '.join(GOODPUT_METRICS)}.",
                param="goodput",
            )
    return parsed


def _is_good(request: RequestTimes, bounds: Mapping[str, float]) -> bool:
    times = {"ttft": request.ttft, "tpot": request.tpot or 0.0, "e2el": request.latency}
    return all(times[name] * 1e3 <= bound for name, bound in bounds.items())
