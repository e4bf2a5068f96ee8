"""Spans of requests, read from an exporter in memory and, once, from a collector that listens."""

from __future__ import annotations

import http.server
import sys
import threading
import time

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from octavo.errors import ConfigError
from octavo.server.tracing import RequestTracer
from octavo.sim import SimOptions

CANARY = "canary-5c11"
CHAT = {"messages": [{"role": "user", "content": CANARY}], "max_tokens": 6, "ignore_eos": True, "temperature": 0.5}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def traced(start_server):
    exporter = InMemorySpanExporter()
    with start_server(sim=SimOptions(step_seconds=0.01)) as running:
        running.app.tracer = RequestTracer(exporter, at_once=True)
        running.exporter = exporter
        yield running
        running.app.tracer.close()


def span_of(traced, path, body, headers=None, count=1):
    """The span that a request makes, which comes a moment after its reply."""
    traced.exporter.clear()
    with traced.client(headers=headers or {}) as client:
        reply = client.post(path, json=body)
    deadline = time.monotonic() + 2
    while len(traced.exporter.get_finished_spans()) < count and time.monotonic() < deadline:
        time.sleep(0.005)
    (span,) = traced.exporter.get_finished_spans()
    return reply, span


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat(traced, stream):
    before = time.time_ns()
    reply, span = span_of(traced, "/v1/chat/completions", {**CHAT, "stream": stream, "stop": [CANARY + "x"]})
    attributes = dict(span.attributes)
    assert (span.name, span.kind) == ("chat sim", SpanKind.SERVER)
    assert span.parent is None and span.status.status_code is StatusCode.UNSET
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "octavo",
        "gen_ai.request.model": "sim",
        "gen_ai.response.model": "sim",
        "gen_ai.request.max_tokens": 6,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.choice.count": 1,
        "gen_ai.request.stream": stream,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.output_tokens": 6,
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "octavo.request_id": reply.headers["x-request-id"],
    }
    assert {name: attributes.get(name) for name in expected} == expected
    assert attributes["gen_ai.usage.input_tokens"] > 0
    assert attributes["gen_ai.response.id"].startswith("chatcmpl-") and attributes["gen_ai.response.id"] in reply.text
    assert [event.name for event in span.events] == ["queue", "prefill", "decode"]
    moments = [span.start_time, *(event.timestamp for event in span.events), span.end_time]
    assert moments == sorted(moments)
    assert before - 1e7 < span.start_time and span.end_time < time.time_ns() + 1e7
    assert span.end_time - span.events[2].timestamp > 5 * 0.008e9  # five steps of decode
    first = attributes["gen_ai.response.time_to_first_chunk"]
    assert first == pytest.approx((span.events[2].timestamp - span.start_time) / 1e9, abs=1e-3)
    assert CANARY not in span.to_json()


def test_the_clients_trace_goes_on(traced):
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
    _, span = span_of(traced, "/v1/chat/completions", CHAT, headers)
    assert f"{span.context.trace_id:032x}" == TRACE and f"{span.parent.span_id:016x}" == PARENT
    assert span.context.trace_state.get("vendor") == "1"


@pytest.mark.parametrize("value", ["", "00-zz-zz-01", "x" * 5000, f"00-{'0' * 32}-{PARENT}-01"])
def test_a_bad_traceparent_begins_a_new_trace(traced, value):
    reply, span = span_of(traced, "/v1/completions", {"prompt": "x", "max_tokens": 1}, {"traceparent": value})
    assert reply.status_code == 200 and span.parent is None


def test_what_the_client_does_not_sample_is_not_sent(traced):
    traced.exporter.clear()
    with traced.client(headers={"traceparent": f"00-{TRACE}-{PARENT}-00"}) as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
    assert traced.exporter.get_finished_spans() == ()


def test_several_prompts_and_samples(traced):
    body = {"prompt": ["one", "two"], "n": 2, "max_tokens": 3, "ignore_eos": True}
    _, span = span_of(traced, "/v1/completions", body)
    assert span.name == "text_completion sim" and span.attributes["gen_ai.usage.output_tokens"] == 12
    assert span.attributes["gen_ai.response.finish_reasons"] == ("length",) * 4
    assert [event.attributes["octavo.prompt_index"] for event in span.events] == [0, 0, 0, 1, 1, 1]


def test_embeddings(traced):
    _, span = span_of(traced, "/v1/embeddings", {"input": CANARY})
    assert span.name == "embeddings sim" and span.attributes["gen_ai.usage.input_tokens"] > 0
    assert "gen_ai.request.temperature" not in span.attributes and CANARY not in span.to_json()


def test_refused_and_failed_requests(traced):
    _, span = span_of(traced, "/v1/chat/completions", {"messages": CANARY})
    assert span.attributes["http.response.status_code"] == 400 and span.status.status_code is StatusCode.UNSET
    assert CANARY not in span.to_json()
    _, span = span_of(traced, "/v1/completions", {"prompt": [CANARY], "max_tokens": 900}, {"x-request-timeout": "0.05"})
    assert span.attributes["http.response.status_code"] == 504 and span.attributes["error.type"] == "504"
    assert span.status.status_code is StatusCode.ERROR and CANARY not in span.to_json()


def test_other_routes_make_none(traced):
    traced.exporter.clear()
    for path in ("/ready", "/metrics", "/v1/models", "/v1/chat/completions"):
        with traced.client() as client:
            client.get(path)
    assert traced.exporter.get_finished_spans() == ()


def test_a_collector_gets_them(start_server):
    got = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, self.headers["content-type"], self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        with start_server() as running:
            running.app.tracer = RequestTracer.to_endpoint(f"http://127.0.0.1:{collector.server_port}")
            running.post("/v1/chat/completions", **CHAT)
        running.app.tracer.close()
        collector.shutdown()
    ((path, kind, body),) = got
    assert (path, kind) == ("/v1/traces", "application/x-protobuf")
    assert b"chat sim" in body and b"gen_ai.usage.output_tokens" in body and CANARY.encode() not in body


def test_a_collector_that_is_not_there_holds_nobody_up(start_server):
    with start_server() as running:
        running.app.tracer = RequestTracer.to_endpoint("http://127.0.0.1:9")
        start = time.perf_counter()
        running.post("/v1/chat/completions", **CHAT)
        assert time.perf_counter() - start < 1.5
    start = time.perf_counter()
    running.app.tracer.close()
    assert time.perf_counter() - start < 6


@pytest.mark.parametrize("endpoint", ["collector:4317", "grpc://x:1", "http://", ""])
def test_an_endpoint_that_is_no_url(endpoint):
    with pytest.raises(ConfigError, match="otlp-traces-endpoint cannot be"):
        RequestTracer.to_endpoint(endpoint)


def test_without_the_extra_the_flag_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"octavo\[otel\]"):
        RequestTracer.to_endpoint("http://127.0.0.1:4318")
