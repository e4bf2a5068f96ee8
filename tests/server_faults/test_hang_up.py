"""A client that goes, at whatever moment: within a second nothing of its request is left."""

from __future__ import annotations

import json
import socket
import time

import pytest

from octavo.sim import SimOptions

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def request_bytes(path, **body):
    data = json.dumps(body).encode()
    head = "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return (head % (path, len(data))).encode() + data


def connect(running):
    host, port = running.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def nothing_is_left(running):
    def clean():
        stats = running.llm.stats
        return (
            running.llm.num_open == 0
            and running.app.num_exchanges == 0
            and stats.num_running == stats.num_waiting == 0
            and stats.num_free_pages == stats.num_pages
            and not running.llm._waiting
            and not running.llm.frontend.outputs._open
        )

    start = time.monotonic()
    running.wait(clean, 3.0)
    return time.monotonic() - start


@pytest.fixture(scope="module")
def slow(start_server):
    with start_server(sim=SimOptions(step_seconds=0.02), max_num_seqs=2, max_num_batched_tokens=16) as running:
        yield running


LONG = "a prompt of some length, " * 150  # 3,750 tokens: 235 steps
STREAM = {"prompt": "ab", "max_tokens": 3000, "stream": True}


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
@pytest.mark.parametrize(
    ("data", "when"),
    [  # what is sent, and the moment at which the client goes
        (request_bytes(COMPLETIONS, prompt="ab")[:40], lambda running: True),
        (request_bytes(COMPLETIONS, prompt="ab" * 500)[:-400], lambda running: running.app.num_exchanges == 1),
        (request_bytes(COMPLETIONS, prompt=LONG, max_tokens=9), lambda running: running.app.num_exchanges == 1),
        (request_bytes(COMPLETIONS, prompt=LONG, max_tokens=9), lambda running: running.llm.stats.num_running == 1),
        (request_bytes(COMPLETIONS, prompt="ab", max_tokens=3000), lambda running: running.llm.stats.num_running == 1),
        (request_bytes(COMPLETIONS, **STREAM), lambda running: running.llm.stats.generation_tokens > 3),
        (request_bytes(COMPLETIONS, **STREAM, n=4), lambda running: running.llm.stats.num_waiting > 0),
        (request_bytes(COMPLETIONS, **{**STREAM, "prompt": ["ab"] * 30}), lambda running: running.llm.num_open == 30),
        (request_bytes(CHAT, messages=[{"role": "user", "content": LONG[:3000]}]), lambda run: run.llm.num_open),
    ],
    ids=["head", "body", "tokenize", "prefill", "decode", "stream", "n", "queue", "chat"],
)  # fmt: skip
def test_hanging_up_leaves_nothing(slow, data, when, how):
    connection = connect(slow)
    connection.sendall(data)
    slow.wait(lambda: when(slow))
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    if how == "half-close":
        connection.shutdown(socket.SHUT_WR)
    else:
        connection.close()
    assert nothing_is_left(slow) < 1.5
    connection.close()


def test_another_request_is_not_disturbed(slow):
    steady = connect(slow)
    steady.sendall(request_bytes(COMPLETIONS, prompt="steady|", max_tokens=70))
    for _ in range(5):
        connection = connect(slow)
        connection.sendall(request_bytes(COMPLETIONS, **STREAM))
        connection.recv(100)
        connection.close()
    raw = b""
    while b'"finish_reason"' not in raw:
        raw += steady.recv(65536)
    assert json.loads(raw.partition(b"\r\n\r\n")[2])["choices"][0]["text"] == "steady|" * 10
    steady.close()
    nothing_is_left(slow)


@pytest.mark.parametrize("together", [True, False])
def test_requests_that_come_before_the_reply_end_the_connection(slow, together):
    """While one waits behind another, nothing is read, and nobody would see that the client has gone."""
    connection = connect(slow)
    connection.sendall(request_bytes(COMPLETIONS, **STREAM) * (2 if together else 1))
    if not together:
        assert b"200 OK" in connection.recv(1000)
        connection.sendall(request_bytes(COMPLETIONS, **STREAM))
    raw = b""
    while part := connection.recv(65536):
        raw += part
    assert (b'"pipelined"' in raw) == together
    assert nothing_is_left(slow) < 1.5
    connection.close()


def test_one_request_after_another_on_one_connection(slow):
    connection = connect(slow)
    for _ in range(3):
        connection.sendall(request_bytes(COMPLETIONS, prompt="ab", max_tokens=2))
        raw = b""
        while b'"usage"' not in raw:
            raw += connection.recv(65536)
        assert b'"text":"ab"' in raw
    connection.close()
