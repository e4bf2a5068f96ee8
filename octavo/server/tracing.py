"""OpenTelemetry traces: a span for each request that generates, under the GenAI semantic conventions' names.

Spans are made when a request has ended, from times that were taken anyway, and sent by a thread: tokens cost nothing
more. Nothing of prompts, answers or stop strings is in them. Needs the extra `octavo[otel]`.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from octavo import __version__
from octavo.errors import ConfigError
from octavo.server.http import Exchange

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/embeddings": "embeddings",
}
_EXPORT_SECONDS = 2.0
_MOST_PHASES = 16  # prompts of one request whose phases are told


class RequestTracer:
    """Makes spans of exchanges. `traceparent` and `tracestate` of the request make it part of the client's trace.

    Args:
        exporter: where spans go.
        at_once: send each span when it is made, for tests; else in batches, from a thread.
    """

    def __init__(self, exporter: SpanExporter, *, at_once: bool = False):
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": "octavo", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(SimpleSpanProcessor(exporter) if at_once else BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("octavo.server", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to_endpoint(cls, endpoint: str) -> RequestTracer:
        """Send to a collector by OTLP over HTTP. OpenTelemetry's environment variables hold, as OTEL_SERVICE_NAME.

        Args:
            endpoint: an http or https URL; /v1/traces is added to one without a path.

        Raises:
            ConfigError: the endpoint is no such URL, or the extra is not installed.
        """
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"--otlp-traces-endpoint cannot be {endpoint[:200]!r}.",
                fix="Write a URL, as http://127.0.0.1:4318/v1/traces.",
                param="otlp_traces_endpoint",
            )
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError as error:
            raise ConfigError(
                f"--otlp-traces-endpoint needs OpenTelemetry: {error}.",
                fix='Install it: pip install "octavo[otel]".',
                param="otlp_traces_endpoint",
            ) from None
        url = endpoint if parts.path.strip("/") else parts._replace(path="/v1/traces").geturl()
        return cls(OTLPSpanExporter(endpoint=url, timeout=_EXPORT_SECONDS))

    def ended(self, exchange: Exchange, route: str, model: str) -> None:
        """Make the span of an exchange that has ended, if it was to generate.

        Args:
            model: the name that is served.
        """
        operation = OPERATIONS.get(route)
        if operation is None or exchange.method != "POST":
            return
        from opentelemetry.trace import SpanKind, StatusCode

        clock = time.time_ns() - time.monotonic_ns()
        span = self._tracer.start_span(
            f"{operation} {model}",
            context=self._propagator.extract(_trace_headers(exchange)),
            kind=SpanKind.SERVER,
            start_time=_nanoseconds(exchange.begun, clock),
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "octavo",
                "gen_ai.request.model": model,
                "http.request.method": "POST",
                "http.route": route,
                "http.response.status_code": exchange.status,
                "octavo.request_id": exchange.request_id,
            },
        )
        if exchange.opened and span.is_recording():
            span.set_attributes(_attributes(exchange, model))
            _add_phases(span, exchange, clock)
        failed = any(sample.finish_reason == "error" for request in exchange.opened for sample in request.samples)
        if exchange.status >= 500 or failed:
            span.set_attribute("error.type", str(exchange.status) if exchange.status >= 500 else "sample_failed")
            span.set_status(StatusCode.ERROR)
        span.end(_nanoseconds(time.monotonic(), clock))

    def close(self) -> None:
        """Send what is left, as far as the collector takes it soon."""
        with contextlib.suppress(Exception):  # the server ends: spans that cannot be sent are lost, nothing else
            self._provider.shutdown()


def _trace_headers(exchange: Exchange) -> dict[str, str]:
    headers = exchange.headers
    return {name: headers[name.encode()].decode("latin-1") for name in _TRACE_HEADERS if name.encode() in headers}


_TRACE_HEADERS = ("traceparent", "tracestate")


def _attributes(exchange: Exchange, model: str) -> dict[str, Any]:
    opened = exchange.opened
    params = opened[0].params
    samples = [sample for request in opened for sample in request.samples]
    attributes: dict[str, Any] = {
        "gen_ai.response.model": model,
        "gen_ai.response.id": opened[0].request_id,
        "gen_ai.response.finish_reasons": [sample.finish_reason or "" for sample in samples],
        "gen_ai.usage.input_tokens": sum(len(request.prompt_token_ids) for request in opened),
        "gen_ai.usage.cache_read.input_tokens": sum(request.num_cached_tokens for request in opened),
    }
    if opened[0].embedding:
        return attributes
    attributes |= {
        "gen_ai.request.stream": exchange.streaming,
        "gen_ai.request.choice.count": params.n,
        "gen_ai.request.max_tokens": params.max_tokens or 0,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k,
        "gen_ai.request.frequency_penalty": params.frequency_penalty,
        "gen_ai.request.presence_penalty": params.presence_penalty,
        "gen_ai.usage.output_tokens": sum(len(sample.token_ids) for sample in samples),
    }
    first = min((request.first_token_time for request in opened if request.first_token_time), default=0.0)
    if first:
        attributes["gen_ai.response.time_to_first_chunk"] = first - exchange.begun
    return attributes


def _add_phases(span: Span, exchange: Exchange, clock: int) -> None:
    """An event where each phase of a prompt begins: queue, prefill, decode."""
    for place, request in enumerate(exchange.opened[:_MOST_PHASES]):
        begins = (("queue", request.arrival_time), ("prefill", request.scheduled_time))
        for name, moment in (*begins, ("decode", request.first_token_time)):
            if moment:
                span.add_event(name, {"octavo.prompt_index": place}, _nanoseconds(moment, clock))


def _nanoseconds(moment: float, clock: int) -> int:
    """Since 1970, of a monotonic time in seconds."""
    return clock + int(1e9 * moment)
