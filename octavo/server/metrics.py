"""What the server counts, in Prometheus' text format (version 0.0.4). Label sets are closed: no client chooses a label.

`vllm:` names carry the figures that mean the same there, so that dashboards and autoscalers made for it work.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from octavo import __version__
from octavo.frontend.outputs import ProcessedStep
from octavo.frontend.sample import OpenRequest, Update
from octavo.request import EngineStats, StepFigures
from octavo.server.metrics_process import process_figures

SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
           160.0, 640.0)  # fmt: skip
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
CHOICES = (1, 2, 5, 10, 20, 50, 100)
FINISH_REASONS = ("stop", "length", "abort", "error")
STATES = ("loading", "ready", "draining", "hung", "restarting", "dead", "closed")
ROUTES = ("/v1/models", "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/responses/{response_id}",
          "/v1/messages", "/v1/messages/count_tokens",
          "/v1/embeddings", "/tokenize", "/detokenize", "/tokenizer_info", "/live", "/startup", "/ready", "/version",
          "/metrics", "/openapi.json", "/docs", "other")  # fmt: skip
_HISTOGRAMS: dict[str, tuple[Sequence[float], str]] = {
    "time_to_first_token_seconds": (SECONDS, "From a request's arrival to its first token."),
    "inter_token_latency_seconds": (SECONDS, "Between a sample's tokens of two steps."),
    "request_time_per_output_token_seconds": (SECONDS, "Mean time of a request's tokens after the first one."),
    "e2e_request_latency_seconds": (SECONDS, "From a request's arrival to its end."),
    "request_queue_time_seconds": (SECONDS, "From a request's arrival to its first step."),
    "request_prefill_time_seconds": (SECONDS, "From a request's first step to its first token."),
    "request_decode_time_seconds": (SECONDS, "From a request's first token to its end."),
    "request_inference_time_seconds": (SECONDS, "From a request's first step to its end."),
    "request_prompt_tokens": (TOKENS, "Tokens of a request's prompt."),
    "request_generation_tokens": (TOKENS, "Tokens of a request's answers."),
    "request_params_n": (CHOICES, "Samples that a request asked for."),
    "request_params_max_tokens": (TOKENS, "Tokens that each of a request's samples could have."),
    "iteration_tokens_total": (TOKENS, "Tokens that a step computed, of prompts and of answers."),
}
_NO_STEP = StepFigures()


class Histogram:
    """Counts of values up to bounds."""

    def __init__(self, bounds: Sequence[float]):
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Count a value, or several equal ones."""
        self.counts[bisect.bisect_left(self.bounds, value)] += count
        self.sum += value * count

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """Sample lines; a bucket counts all values up to its bound."""
        total = 0
        for bound, count in zip((*map(_number, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {total}'
        yield f"{name}_sum{{{labels}}} {self.sum!r}"
        yield f"{name}_count{{{labels}}} {total}"


class Metrics:
    """One server's counts. `ended` is told of every sample's last update, `stepped` of every step."""

    def __init__(self) -> None:
        self.finished = dict.fromkeys(FINISH_REASONS, 0)
        self.rejected = 0
        self.replies: dict[tuple[str, int], int] = {}
        self.cached_tokens = 0
        self.histograms = {name: Histogram(bounds) for name, (bounds, _) in _HISTOGRAMS.items()}
        self.step_time = Histogram(SECONDS)
        self._last_step = _NO_STEP

    def stepped(self, step: ProcessedStep) -> None:
        """Count a step of the engine, and the gaps between its tokens and those before."""
        figures = step.stats.last_step if step.stats is not None else _NO_STEP
        if figures not in (self._last_step, _NO_STEP):  # those of some steps are told to another front
            self._last_step = figures
            self.step_time.observe(figures.seconds)
            self.histograms["iteration_tokens_total"].observe(figures.num_tokens)
        gaps = self.histograms["inter_token_latency_seconds"]
        for moment, count in Counter(step.previous).items():  # few different ones, as steps serve many at once
            if moment and moment < step.time:
                gaps.observe(step.time - moment, count)

    def ended(self, update: Update) -> None:
        """Count a sample's end and, with the last one, its request."""
        if update.finish_reason is not None:
            self.finished[update.finish_reason] += 1
        if not update.finished:
            return
        self.cached_tokens += update.request.num_cached_tokens
        for name, value in _observed(update.request):
            self.histograms[name].observe(value)

    def replied(self, route: str, status: int) -> None:
        """Count a reply; routes that are none of `ROUTES` count as "other"."""
        key = (route if route in ROUTES else "other", status)
        self.replies[key] = self.replies.get(key, 0) + 1

    def text(
        self,
        model: str,
        stats: EngineStats,
        *,
        state: str = "ready",
        num_open: int = 0,
        num_restarts: int = 0,
        cache: Mapping[str, str | int] | None = None,
    ) -> str:
        """The page of /metrics.

        Args:
            state: one of `STATES`.
            cache: facts of the KV cache, once they are known.
        """
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
            gauge = f"{prefix}:cache_config_info"
            lines += _head(gauge, "gauge", "Always 1, once the model is loaded; the labels are facts of the KV cache.")
            if cache is not None:
                facts = ",".join(f'{key}="{_escape(str(value))}"' for key, value in cache.items())
                lines += [f"{gauge}{{{labels},{facts}}} 1"]
            for name, histogram in self.histograms.items():
                lines += _head(f"{prefix}:{name}", "histogram", _HISTOGRAMS[name][1])
                lines += histogram.lines(f"{prefix}:{name}", labels)
        lines += self._own(label, stats, state, num_open)
        name = "octavo:engine_restarts_total"
        lines += [
            *_head(name, "counter", "Engines started in place of one that died or hung; other counters begin anew.")
        ]
        lines += [f"{name}{{{label}}} {num_restarts}"]
        for name, kind, text, value in process_figures():
            lines += [*_head(name, kind, text), f"{name} {_number(value)}"]
        return "\n".join(lines) + "\n"

    def _own(self, label: str, stats: EngineStats, state: str, num_open: int) -> Iterator[str]:
        own: tuple[tuple[str, str, str, float], ...] = (
            ("ready", "gauge", "1 while /ready answers 200.", int(state == "ready")),
            ("num_requests_open", "gauge", "Requests that the server has open.", num_open),
            ("num_pages", "gauge", "Pages of the KV pool.", stats.num_pages),
            (
                "num_free_pages",
                "gauge",
                "Pages that no sequence owns; cached ones count as free.",
                stats.num_free_pages,
            ),
            ("evictions_total", "counter", "Cached pages given to something else.", stats.num_evictions),
            (
                "swapped_out_pages_total",
                "counter",
                "Pages of preempted sequences copied to host memory.",
                stats.swapped_out_pages,
            ),
            ("swapped_in_pages_total", "counter", "Pages copied back from host memory.", stats.swapped_in_pages),
            ("steps_total", "counter", "Steps of the engine.", stats.num_steps),
            ("jump_tokens_total", "counter", "Tokens that a grammar left no choice about.", stats.jump_tokens),
            ("admission_rejections_total", "counter", "Requests refused with 503 or 429.", self.rejected),
        )
        for name, kind, text, value in own:
            yield from _head(f"octavo:{name}", kind, text)
            yield f"octavo:{name}{{{label}}} {_number(value)}"
        yield from _head("octavo:state", "gauge", "1 for the state that /ready tells, 0 for the others.")
        yield from (f'octavo:state{{{label},state="{each}"}} {int(each == state)}' for each in STATES)
        name, text = "octavo:step_time_seconds", "Time of a step; of steps that overlap, each one's own share."
        yield from (*_head(name, "histogram", text), *self.step_time.lines(name, label))
        yield from _head("octavo:http_replies_total", "counter", "Replies, by route and status.")
        for (route, status), count in sorted(self.replies.items()):
            yield f'octavo:http_replies_total{{route="{route}",status="{status}"}} {count}'
        yield from _head("octavo:info", "gauge", "Always 1; the label says the version.")
        yield f'octavo:info{{version="{__version__}"}} 1'


def _observed(request: OpenRequest) -> Iterator[tuple[str, float]]:
    """What the histograms are told of a request that has ended."""
    times = request.metrics()
    yield "e2e_request_latency_seconds", times.total_time
    yield "request_prompt_tokens", len(request.prompt_token_ids)
    yield "request_generation_tokens", sum(len(sample.token_ids) for sample in request.samples)
    yield "request_params_n", request.params.n
    yield "request_params_max_tokens", request.params.max_tokens or 0
    if request.scheduled_time:
        yield "request_queue_time_seconds", times.queue_time
        yield "request_inference_time_seconds", max(0.0, times.total_time - times.queue_time)
    if not request.first_token_time:
        return
    yield "time_to_first_token_seconds", times.time_to_first_token
    yield "request_prefill_time_seconds", max(0.0, times.time_to_first_token - times.queue_time)
    after = times.total_time - times.time_to_first_token
    yield "request_decode_time_seconds", max(0.0, after)
    longest = max(len(sample.token_ids) for sample in request.samples)
    if longest > 1 and after > 0:  # beams come all at once
        yield "request_time_per_output_token_seconds", after / (longest - 1)


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
