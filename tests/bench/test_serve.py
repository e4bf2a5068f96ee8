"""The load generator against a small server of known behaviour."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager

import pytest

from octavo.bench.http_stream import Endpoint
from octavo.bench.serve import Load, arrival_gaps, measure, models_of, result_of
from octavo.bench.workloads import fixed
from octavo.errors import ConfigError


class FakeServer:
    """Speaks just enough HTTP to stream three chunks of two tokens each; `requests` keeps what it was asked."""

    def __init__(self, *, status=200, chunked=True, usage=True, broken=False):
        self.status, self.chunked, self.usage, self.broken = status, chunked, usage, broken
        self.requests, self.open_now, self.most_open = [], 0, 0
        self.url = ""

    async def handle(self, reader, writer):
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next((int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:")), 0)
        body = await reader.readexactly(length)
        if head.startswith("GET"):
            self._plain(writer, {"data": [{"id": "fake-model", "vocab_size": 500}]})
        elif self.status != 200:
            self._plain(writer, {"error": {"message": "no room"}})
        else:
            self.requests.append((head, json.loads(body)))
            await self._stream(writer)
        self.open_now -= 1
        await writer.drain()
        writer.close()

    def _plain(self, writer, content):
        data = json.dumps(content).encode()
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (self.status, len(data)) + data)

    async def _stream(self, writer):
        kind = b"Transfer-Encoding: chunked\r\n" if self.chunked else b""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + kind + b"\r\n")
        events = [{"choices": [{"text": f"piece {index}"}]} for index in range(3)]
        if self.usage:
            events.append({"choices": [], "usage": {"prompt_tokens": 8, "completion_tokens": 6}})
        for event in events:
            await asyncio.sleep(0.02)
            self._send(writer, b"data: " + json.dumps(event).encode() + b"\n\n")
            if self.broken:
                return
        self._send(writer, b"data: [DO")
        self._send(writer, b"NE]\n\n")
        if self.chunked:
            writer.write(b"0\r\n\r\n")

    def _send(self, writer, data):
        writer.write(b"%x\r\n%s\r\n" % (len(data), data) if self.chunked else data)


@contextmanager
def running(**settings):
    server, loop, ready = FakeServer(**settings), asyncio.new_event_loop(), threading.Event()

    async def start():
        listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
        server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        ready.set()

    thread = threading.Thread(target=lambda: (loop.run_until_complete(start()), loop.run_forever()), daemon=True)
    thread.start()
    assert ready.wait(5)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)


@pytest.mark.parametrize("chunked", [True, False])
def test_times_and_counts_of_a_stream(chunked):
    with running(chunked=chunked) as server:
        times = measure(Load(url=server.url, model="fake-model"), fixed(2, 8, 6, vocab_size=500))
    assert [request.error for request in times] == ["", ""]
    assert all(request.output_len == 6 and request.input_len == 8 for request in times)
    assert all(len(request.itl) == 2 and min(request.itl) > 0.005 for request in times)
    assert all(0.01 < request.ttft < request.latency for request in times)
    assert all(request.latency == pytest.approx(request.ttft + sum(request.itl)) for request in times)


def test_requests_ask_for_what_the_workload_says():
    workload = fixed(1, 8, 6, vocab_size=500)
    with running() as server:
        measure(Load(url=server.url + "/v1/", model="m", api_key="secret", extra={"top_p": 0.5}), workload)
    head, body = server.requests[0]
    assert head.startswith("POST /v1/completions HTTP/1.1\r\n")
    assert "Authorization: Bearer secret" in head
    assert body["prompt"] == workload[0].prompt_token_ids
    assert (body["max_tokens"], body["temperature"], body["ignore_eos"], body["top_p"]) == (6, 0.0, True, 0.5)


def test_without_usage_a_chunk_counts_as_a_token():
    with running(usage=False) as server:
        times = measure(Load(url=server.url, model="m"), fixed(1, 8, 6))
    assert times[0].output_len == 3


def test_concurrency_is_bounded():
    with running() as server:
        times = measure(Load(url=server.url, model="m", max_concurrency=2), fixed(6, 4, 2))
        assert server.most_open == 2
    assert not any(request.error for request in times)


@pytest.mark.parametrize(("settings", "words"), [({"status": 503}, "no room"), ({"broken": True}, "Incomplete")])
def test_failures_are_kept_not_raised(settings, words):
    with running(**settings) as server:
        load = Load(url=server.url, model="m")
        times = measure(load, fixed(2, 4, 2))
    assert all(words in request.error for request in times)
    assert result_of(load, "w", times, {}, modulo=False)["failed"] == 2


def test_a_request_that_takes_too_long_fails():
    with running() as server:
        times = measure(Load(url=server.url, model="m", timeout=0.01), fixed(1, 4, 2))
    assert "within 0.01 s" in times[0].error


def test_models_are_asked_of_the_server():
    with running() as server:
        assert asyncio.run(models_of(server.url, None)) == [{"id": "fake-model", "vocab_size": 500}]


def test_no_server_is_a_clear_error():
    with pytest.raises(ConfigError, match="No OpenAI-compatible server answers"):
        asyncio.run(models_of("http://127.0.0.1:9", None))


@pytest.mark.parametrize("url", ["ftp://host", "http://"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ConfigError, match="no address"):
        Endpoint.of(url, "/v1/models")


def test_arrivals_have_the_mean_rate_and_are_repeatable():
    load = Load(url="", model="", request_rate=50.0, seed=3)
    gaps = arrival_gaps(load, 4000)
    assert gaps == arrival_gaps(load, 4000)
    assert gaps[0] == 0.0
    assert sum(gaps) / len(gaps) == pytest.approx(0.02, rel=0.1)
    assert arrival_gaps(Load(url="", model=""), 3) == [0.0, 0.0, 0.0]


def test_the_result_is_json_and_keeps_no_key():
    with running() as server:
        load = Load(url=server.url, model="m", api_key="secret")
        result = result_of(load, "w", measure(load, fixed(3, 4, 2)), {"ttft": 1e6}, modulo=True)
    text = json.dumps(result, allow_nan=False)
    assert "secret" not in text
    assert result["completed"] == 3
    assert result["good_requests_per_s"] == pytest.approx(result["requests_per_s"])
