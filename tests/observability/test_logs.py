"""The log: one object a line, one line a request, nothing of what was said, and nobody waits for it."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time

import httpx
import psutil
import pytest

from octavo.config import ServerOptions
from octavo.logs import JsonFormatter, TextFormatter, ThreadHandler, logging_to_stderr
from octavo.sim import SimOptions
from tests.server.conftest import NO_TLS

CANARY = "canary-7f3a"
FUNCTION = {"type": "function", "function": {"name": "f", "description": CANARY, "parameters": {"title": CANARY}}}
SAID = [{"role": "system", "content": CANARY}, {"role": "user", "content": "hello " + CANARY}]
BODIES = [
    ("/v1/completions", {"prompt": CANARY, "max_tokens": 4}),
    ("/v1/completions", {"prompt": [CANARY, CANARY + "2"], "max_tokens": 4, "stream": True, "user": CANARY}),
    ("/v1/completions", {"prompt": CANARY, "max_tokens": 2, "echo": True, "logprobs": 2, "stop": [CANARY]}),
    ("/v1/completions", {"prompt": CANARY, "max_tokens": CANARY}),
    ("/v1/completions", {"prompt": {"a": CANARY}}),
    ("/v1/completions", {"prompt": CANARY, "guided_regex": CANARY}),
    ("/v1/completions", {"prompt": CANARY, "model": CANARY}),
    ("/v1/chat/completions", {"messages": SAID, "max_tokens": 4}),
    ("/v1/chat/completions", {"messages": SAID, "max_tokens": 4, "stream": True, "tools": [FUNCTION]}),
    ("/v1/chat/completions", {"messages": [{"role": CANARY, "content": CANARY}]}),
    ("/v1/chat/completions", {"messages": SAID, "tools": [{"type": CANARY}], "cache_salt": CANARY}),
    ("/v1/embeddings", {"input": [CANARY, "x" + CANARY]}),
    ("/v1/embeddings", {"input": CANARY, "pooling": CANARY}),
    ("/v1/" + CANARY, {"prompt": CANARY}),
]


def finish(process):
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    return errors


def send_all(url):
    """Every body once; returns the replies' request ids."""
    ids = []
    with httpx.Client(base_url=url, timeout=20, verify=NO_TLS, headers={"x-note": CANARY}) as client:
        client.get("/ready", params={"q": CANARY})
        for number, (path, body) in enumerate(BODIES):
            reply = client.post(path, json=body, headers={"x-request-id": f"test-{number}"})
            assert reply.status_code < 500, reply.text
            ids.append(reply.headers["x-request-id"])
        ids.append(client.post("/v1/completions", content=CANARY).headers["x-request-id"])
    return ids


def until_ready_again(url):
    with httpx.Client(base_url=url, timeout=20, verify=NO_TLS) as client:
        statuses, deadline = set(), time.monotonic() + 15
        while statuses != {200, 503} or client.get("/ready").status_code != 200:
            statuses.add(client.get("/ready").status_code)
            assert time.monotonic() < deadline, statuses
            time.sleep(0.01)


def test_json_has_a_line_for_each_request_and_no_prompt(process_server):
    options = ServerOptions(port=0, log_format="json", log_level="debug")
    process, url = process_server(options=options, sim=SimOptions(scripted=True))
    ids = send_all(url)
    psutil.Process(process.pid).children()[0].kill()
    until_ready_again(url)
    text = finish(process)
    lines = [json.loads(line) for line in text.splitlines()]
    assert CANARY not in text
    assert any(line["logger"] == "octavo.engine" and line["level"] == "error" for line in lines)
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    access = {line["request_id"]: line for line in lines if line["logger"] == "octavo.access"}
    assert set(ids) < access.keys() and ids[:14] == [f"test-{n}" for n in range(14)]
    first = access["test-0"]
    assert (first["method"], first["route"], first["status"]) == ("POST", "/v1/completions", 200)
    assert (first["completion_tokens"], first["finish_reasons"], first["level"]) == (4, "length", "info")
    assert 0 < first["first_token_seconds"] <= first["seconds"] and first["queue_seconds"] >= 0
    assert access["test-1"]["completion_tokens"] == 8 and access["test-3"]["status"] == 400
    assert access["test-13"]["route"] == "other"
    assert {line["level"] for line in access.values() if line["route"] == "/ready"} == {"debug"}


def test_text_has_the_same_and_probes_are_quiet(start_server, capfd):
    with logging_to_stderr("text", "info"), start_server(sim=SimOptions(scripted=True)) as running:
        send_all(running.url)
    text = capfd.readouterr().err
    lines = [line for line in text.splitlines() if "octavo.access" in line]
    assert len(lines) == len(BODIES) + 1 and CANARY not in text
    assert "request_id=test-0 method=POST route=/v1/completions status=200" in lines[0]
    assert "/ready" not in text


def test_only_errors_if_so_wished(start_server, capfd):
    with logging_to_stderr("text", "error"), start_server() as running:
        running.post("/v1/completions", prompt=CANARY, max_tokens=4)
        running.post("/v1/completions", 400, prompt=CANARY, max_tokens=CANARY)
    assert capfd.readouterr().err == ""


class Stuck:
    """A stream that takes nothing until it is let go."""

    def __init__(self):
        self.go, self.text = threading.Event(), ""

    def write(self, text):
        self.go.wait(10)
        self.text += text

    def flush(self):
        pass


def test_nobody_waits_for_a_reader():
    stream = Stuck()
    handler = ThreadHandler(stream)
    handler.setFormatter(TextFormatter())
    record = logging.LogRecord("octavo.x", logging.INFO, "", 0, "a line", (), None)
    start = time.perf_counter()
    for _ in range(12_000):
        handler.emit(record)
    assert time.perf_counter() - start < 5
    stream.go.set()
    while not handler._lines.empty():
        time.sleep(0.01)
    handler.emit(record)
    handler.close()
    dropped = 12_001 - stream.text.count("a line")
    assert f"{dropped} lines were dropped" in stream.text and 1900 < dropped <= 2000


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_message_stays_on_its_line(formatter):
    record = logging.LogRecord("octavo.x", logging.INFO, "", 0, "%s", ("a\nFORGED\r\x1b[2J",), None)
    record.fields = {"id": "b\nFORGED"}
    line = formatter.format(record)
    assert len(line.splitlines()) == 1 and "\x1b" not in line and line.count("FORGED") == 2


def test_a_fault_has_its_trace():
    try:
        raise ValueError("why")
    except ValueError:
        record = logging.LogRecord("octavo.x", logging.ERROR, "", 0, "it failed", (), sys.exc_info())
    entry = json.loads(JsonFormatter().format(record))
    assert entry["message"] == "it failed" and entry["traceback"].endswith("ValueError: why")
    assert TextFormatter().format(record).endswith("ValueError: why")


def test_the_loggers_are_as_before_afterwards(capsys):
    root = logging.getLogger("octavo")
    before = root.level, root.propagate, list(root.handlers)
    with logging_to_stderr("json", "debug"):
        assert root.isEnabledFor(logging.DEBUG)
    assert (root.level, root.propagate, root.handlers) == before
