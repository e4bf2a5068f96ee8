"""What the server counts, in Prometheus' text format (version 0.0.4). Label sets are closed: no client chooses a label.

`vllm:` names carry the figures that mean the same there, so that dashboards and autoscalers made for it work.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

from octavo import __version__
from octavo.frontend.sample import Update
from octavo.request import EngineStats

SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
           160.0, 640.0)  # fmt: skip
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
FINISH_REASONS = ("stop", "length", "abort", "error")
ROUTES = ("/v1/models", "/v1/completions", "/v1/chat/completions", "/live", "/ready", "/version", "/metrics", "other")


class Histogram:
    """Counts of values up to bounds."""

    def __init__(self, bounds: Sequence[float]):
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """Sample lines; a bucket counts all values up to its bound."""
        total = 0
        for bound, count in zip((*map(_number, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {total}'
        yield f"{name}_sum{{{labels}}} {self.sum!r}"
        yield f"{name}_count{{{labels}}} {total}"


class Metrics:
    """One server's counts. `ended` is told of every sample's last update."""

    def __init__(self) -> None:
        self.finished = dict.fromkeys(FINISH_REASONS, 0)
        self.rejected = 0
        self.replies: dict[tuple[str, int], int] = {}
        self.cached_tokens = 0
        self.histograms = {
            "time_to_first_token_seconds": (Histogram(SECONDS), "From a request's arrival to its first token."),
            "request_time_per_output_token_seconds": (Histogram(SECONDS), "Time of a token after the first one."),
            "e2e_request_latency_seconds": (Histogram(SECONDS), "From a request's arrival to its end."),
            "request_queue_time_seconds": (Histogram(SECONDS), "From a request's arrival to its first step."),
            "request_prompt_tokens": (Histogram(TOKENS), "Tokens of a request's prompt."),
            "request_generation_tokens": (Histogram(TOKENS), "Tokens of a request's answers."),
        }

    def ended(self, update: Update) -> None:
        """Count a sample's end and, with the last one, its request."""
        if update.finish_reason is not None:
            self.finished[update.finish_reason] += 1
        if not update.finished:
            return
        request = update.request
        times = request.metrics()
        generated = sum(len(sample.token_ids) for sample in request.samples)
        self.cached_tokens += request.num_cached_tokens
        observed: dict[str, float] = {
            "e2e_request_latency_seconds": times.total_time,
            "request_prompt_tokens": len(request.prompt_token_ids),
            "request_generation_tokens": generated,
        }
        if request.scheduled_time:
            observed["request_queue_time_seconds"] = times.queue_time
        if request.first_token_time:
            observed["time_to_first_token_seconds"] = times.time_to_first_token
            longest = max(len(sample.token_ids) for sample in request.samples)
            after = times.total_time - times.time_to_first_token
            if longest > 1 and after > 0:  # beams come all at once
                observed["request_time_per_output_token_seconds"] = after / (longest - 1)
        for name, value in observed.items():
            self.histograms[name][0].observe(value)

    def replied(self, route: str, status: int) -> None:
        """Count a reply; routes that are none of `ROUTES` count as "other"."""
        key = (route if route in ROUTES else "other", status)
        self.replies[key] = self.replies.get(key, 0) + 1

    def text(self, model: str, stats: EngineStats, *, ready: bool, num_open: int, num_restarts: int = 0) -> str:
        """The page of /metrics."""
        label = f'model_name="{_escape(model)}"'
        lines: list[str] = []
        for prefix, labels in (("octavo", label), ("vllm", f'{label},engine="0"')):
            for name, kind, text, value in _figures(stats):
                lines += [*_head(f"{prefix}:{name}", kind, text), f"{prefix}:{name}{{{labels}}} {_number(value)}"]
            counter = f"{prefix}:prompt_tokens_cached_total"
            lines += [*_head(counter, "counter", "Prompt tokens of requests that ended which came from the cache.")]
            lines += [f"{counter}{{{labels}}} {self.cached_tokens}"]
            counter = f"{prefix}:request_success_total"
            lines += _head(counter, "counter", "Samples that ended, by the reason.")
            lines += [f'{counter}{{{labels},finished_reason="{r}"}} {n}' for r, n in self.finished.items()]
            for name, (histogram, text) in self.histograms.items():
                lines += [*_head(f"{prefix}:{name}", "histogram", text), *histogram.lines(f"{prefix}:{name}", labels)]
        lines += self._own(label, stats, ready, num_open)
        name = "octavo:engine_restarts_total"
        lines += [
            *_head(name, "counter", "Engines started in place of one that died or hung; other counters begin anew.")
        ]
        lines += [f"{name}{{{label}}} {num_restarts}"]
        return "\n".join(lines) + "\n"

    def _own(self, label: str, stats: EngineStats, ready: bool, num_open: int) -> Iterator[str]:
        own: tuple[tuple[str, str, str, float], ...] = (
            ("ready", "gauge", "1 while /ready answers 200.", int(ready)),
            ("num_requests_open", "gauge", "Requests that the server has open.", num_open),
            ("num_pages", "gauge", "Pages of the KV pool.", stats.num_pages),
            (
                "num_free_pages",
                "gauge",
                "Pages that no sequence owns; cached ones count as free.",
                stats.num_free_pages,
            ),
            ("evictions_total", "counter", "Cached pages given to something else.", stats.num_evictions),
            ("steps_total", "counter", "Steps of the engine.", stats.num_steps),
            ("jump_tokens_total", "counter", "Tokens that a grammar left no choice about.", stats.jump_tokens),
            ("admission_rejections_total", "counter", "Requests refused with 503 or 429.", self.rejected),
        )
        for name, kind, text, value in own:
            yield from _head(f"octavo:{name}", kind, text)
            yield f"octavo:{name}{{{label}}} {_number(value)}"
        yield from _head("octavo:http_replies_total", "counter", "Replies, by route and status.")
        for (route, status), count in sorted(self.replies.items()):
            yield f'octavo:http_replies_total{{route="{route}",status="{status}"}} {count}'
        yield from _head("octavo:info", "gauge", "Always 1; the label says the version.")
        yield f'octavo:info{{version="{__version__}"}} 1'


def _figures(stats: EngineStats) -> tuple[tuple[str, str, str, float], ...]:
    """Engine figures that both sets of names have."""
    used = 1.0 - stats.num_free_pages / stats.num_pages if stats.num_pages else 0.0
    return (
        ("num_requests_running", "gauge", "Sequences that take part in steps.", stats.num_running),
        ("num_requests_waiting", "gauge", "Sequences that wait for a place.", stats.num_waiting),
        ("kv_cache_usage_perc", "gauge", "Share of the KV pages that sequences own, 0 to 1.", used),
        ("num_preemptions_total", "counter", "Sequences that lost their place for a while.", stats.num_preemptions),
        ("prefix_cache_queries_total", "counter", "Prompt tokens looked up in the cache.", stats.prefix_queries),
        ("prefix_cache_hits_total", "counter", "Prompt tokens found in the cache.", stats.prefix_hits),
        ("prompt_tokens_total", "counter", "Prompt tokens of requests that began.", stats.prompt_tokens),
        ("generation_tokens_total", "counter", "Tokens generated.", stats.generation_tokens),
    )


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
