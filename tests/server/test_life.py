"""Loading, hanging up, overload, slow readers, the engine's death, and an orderly end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time

import httpx
import msgspec
import psutil
import pytest

from octavo import async_llm
from octavo.config import ServerOptions
from octavo.engine import client
from octavo.errors import ConfigError
from octavo.server import generation
from octavo.server.serve import listen
from octavo.sim import SimOptions
from tests.patience import BUSY
from tests.server.conftest import NO_TLS

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SLOW = SimOptions(step_seconds=0.02)


def wait_for(condition, seconds=3.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def request_bytes(path, **body):
    data = json.dumps(body).encode()
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        path.encode(),
        len(data),
        data,
    )


def connect(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def read_all(connection):
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_while_loading_the_probes_say_so_and_requests_are_told_to_wait(start_server):
    with start_server(sim=SimOptions(startup_seconds=1.0), wait=False) as running:
        running.wait(lambda: running.llm.loading[1] > 0)
        reply = running.get("/ready", status=503).json()
        assert reply["status"] == "loading" and reply["phase"] == "pretend to load" and 0 < reply["fraction"] <= 1
        assert running.get("/live").json() == {"status": "alive"}
        reply = running.get("/startup", status=503).json()
        assert reply["status"] == "starting" and reply["phase"] == "pretend to load" and 0 <= reply["percent"] <= 100
        with running.client() as http:
            reply = http.post(COMPLETIONS, json={"prompt": "a"})
        assert reply.status_code == 503 and int(reply.headers["retry-after"]) >= 1
        running.wait(lambda: running.llm.state == "ready", 10)
        assert running.get("/ready").json() == {"status": "ready"} == running.get("/health").json()
        assert running.get("/startup").json() == {"status": "started"}


@pytest.mark.parametrize("stream", [False, True])
def test_hanging_up_aborts(start_server, stream):
    with start_server(sim=SLOW) as running:
        connection = connect(running.url)
        connection.sendall(request_bytes(COMPLETIONS, prompt="abc", max_tokens=3000, stream=stream, n=2))
        running.wait(lambda: running.llm.stats.num_running == 2)
        connection.close()
        running.wait(lambda: running.llm.num_open == 0, 1)
        running.wait(lambda: running.llm.stats.num_running == 0, 1)
        assert running.llm.stats.num_free_pages == running.llm.stats.num_pages
        assert 'finished_reason="abort"} 2' in running.get("/metrics").text


def test_hanging_up_aborts_what_waits(start_server):
    with start_server(sim=SLOW, max_num_seqs=1) as running:
        connections = [connect(running.url) for _ in range(3)]
        for connection in connections:
            connection.sendall(request_bytes(COMPLETIONS, prompt="abc", max_tokens=3000))
        running.wait(lambda: running.llm.stats.num_waiting == 2)
        connections[2].close()
        connections[1].close()
        running.wait(lambda: running.llm.stats.num_waiting == 0 and running.llm.num_open == 1, 1)
        connections[0].close()
        running.wait(lambda: running.llm.num_open == 0, 1)


def test_a_full_queue_is_503_with_a_time_to_come_back(start_server):
    with start_server(sim=SLOW, max_num_seqs=1, max_num_queued_reqs=2) as running:
        connections = []
        for count in range(3):
            connections.append(connect(running.url))
            connections[-1].sendall(request_bytes(COMPLETIONS, prompt="abc", max_tokens=3000))
            running.wait(lambda count=count: running.llm.num_open == count + 1)
            running.wait(lambda: running.llm.stats.num_running == 1)
        with running.client() as http:
            reply = http.post(CHAT, json={"messages": [{"role": "user", "content": "x"}], "stream": True})
        assert reply.status_code == 503 and 1 <= int(reply.headers["retry-after"]) <= 30
        assert reply.json()["error"]["type"] == "overloaded_error" and reply.json()["error"]["code"] == "overloaded"
        assert "octavo:admission_rejections_total" in running.get("/metrics").text
        for connection in connections:
            connection.close()
        running.wait(lambda: running.llm.num_open == 0)
        assert running.post(COMPLETIONS, prompt="ab", max_tokens=2)["choices"]


def test_a_reader_that_does_not_read_is_bounded(start_server, monkeypatch):
    monkeypatch.setattr(generation, "_MAX_PENDING", 100)
    with start_server() as running:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = running.url.removeprefix("http://").split(":")
        connection.settimeout(5)
        connection.connect((host, int(port)))
        connection.sendall(request_bytes(COMPLETIONS, prompt="abc", max_tokens=4000, n=16, stream=True, logprobs=5))
        raw = connection.recv(1000)
        assert b"200 OK" in raw
        running.wait(lambda: running.llm.num_open == 0, 10)
        assert running.llm.stats.generation_tokens < 16 * 4000
        while b'"error"' not in raw:
            part = connection.recv(1 << 16)
            assert part
            raw = raw[-200:] + part
        assert b"request_failed" in raw and b"not read" in raw
        connection.close()
        assert running.post(COMPLETIONS, prompt="ab", max_tokens=2)["choices"]


@pytest.mark.parametrize("fault", ["kill", "raise"])
def test_when_the_engine_dies_every_open_request_ends_with_an_error(start_server, fault):
    sim = SimOptions(step_seconds=0.02, fault="raise" if fault == "raise" else "", fault_step=30)
    with start_server(sim=sim) as running:

        async def many():
            async with httpx.AsyncClient(base_url=running.url, timeout=20, verify=NO_TLS) as client:
                body = {"prompt": "abc", "max_tokens": 3000}
                posts = [client.post(COMPLETIONS, json={**body, "stream": i % 2 == 0}) for i in range(8)]
                tasks = [asyncio.create_task(post) for post in posts]
                while running.llm.stats.num_running < 8:
                    await asyncio.sleep(0.01)
                if fault == "kill":
                    os.kill(running.llm._client.pid, signal.SIGKILL)
                    killed = time.monotonic()
                    replies = await asyncio.gather(*tasks)
                    return replies, time.monotonic() - killed
                return await asyncio.gather(*tasks), 0.0

        replies, seconds = asyncio.run(many())
        assert seconds < 1.0 * BUSY
        for i, reply in enumerate(replies):
            if i % 2:
                assert reply.status_code == 503 and reply.json()["error"]["code"] == "engine_dead"
                assert reply.json()["error"]["type"] == "server_error"
            else:
                last = reply.text.strip().split("\n\n")[-1]
                assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_dead"
        ready = running.get("/ready", status=503).json()
        assert ready["status"] == "dead" and ("SIGKILL" if fault == "kill" else "simulated") in ready["message"]
        assert running.get("/live", status=503).json() == {"status": "dead"}
        assert running.post(COMPLETIONS, status=503, prompt="a")["error"]["code"] == "engine_dead"
        assert "octavo:ready{" in running.get("/metrics").text


def test_a_hung_engine_is_not_ready(start_server, monkeypatch):
    monkeypatch.setattr(async_llm, "HUNG_SECONDS", 0.3)
    monkeypatch.setattr(client, "_CLOSE_SECONDS", 0.3)
    with start_server(sim=SimOptions(fault="hang", fault_step=3)) as running:
        assert running.get("/ready").status_code == 200
        connection = connect(running.url)
        connection.sendall(request_bytes(COMPLETIONS, prompt="abc", max_tokens=9))
        running.wait(lambda: running.llm.state == "hung")
        assert running.get("/ready", status=503).json() == {"status": "hung"}
        connection.close()


def test_a_slow_engine_is_not_hung(start_server, monkeypatch):
    monkeypatch.setattr(async_llm, "HUNG_SECONDS", 0.5)
    with start_server(sim=SimOptions(step_seconds=0.1)) as running:
        states = [running.get("/ready").json()["status"] for _ in server_ticks(running)]
        assert len(states) > 5 and set(states) == {"ready"}


def server_ticks(running):
    with running.client() as http, http.stream("POST", COMPLETIONS, json={"prompt": "ab", "stream": True}) as reply:
        yield from (line for line in reply.iter_lines() if line)


# -- whole processes -----------------------------------------------------------------------------------------------


def engines_of(process):
    return psutil.Process(process.pid).children()


def test_sigterm_lets_open_requests_finish_and_refuses_new_ones(process_server):
    process, url = process_server(sim=SLOW)
    connection = connect(url)
    connection.sendall(request_bytes(COMPLETIONS, prompt="abc", max_tokens=40, stream=True))
    assert b"200 OK" in connection.recv(4096)
    (engine,) = engines_of(process)
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: httpx.get(url + "/ready").json() == {"status": "draining"})
    assert httpx.get(url + "/ready").status_code == 503
    refused = httpx.post(url + COMPLETIONS, json={"prompt": "a"})
    assert refused.status_code == 503 and "retry-after" in refused.headers
    assert b"[DONE]" in read_all(connection)
    assert process.wait(5) == 0
    assert not engine.is_running()


def test_what_does_not_finish_in_time_ends_with_an_error(process_server):
    process, url = process_server(sim=SLOW, options=ServerOptions(port=0, drain_timeout=0.3))
    connection = connect(url)
    connection.sendall(request_bytes(CHAT, messages=[{"role": "user", "content": "x"}], stream=True))
    assert b"200 OK" in connection.recv(4096)
    process.send_signal(signal.SIGTERM)
    raw = read_all(connection)
    assert b"shutting down" in raw and b"overloaded_error" in raw and b"[DONE]" not in raw
    assert process.wait(5) == 0


def test_a_second_signal_ends_at_once(process_server):
    process, url = process_server(sim=SLOW)
    connection = connect(url)
    connection.sendall(request_bytes(COMPLETIONS, prompt="abc", max_tokens=4000, stream=True))
    assert b"200 OK" in connection.recv(4096)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: httpx.get(url + "/ready").json()["status"] == "draining")
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(5 * BUSY) == 0 and time.monotonic() - start < 4 * BUSY


def test_killing_the_server_leaves_no_engine(process_server):
    process, url = process_server(sim=SLOW)
    (engine,) = engines_of(process)
    connection = connect(url)
    connection.sendall(request_bytes(COMPLETIONS, prompt="abc", max_tokens=4000, stream=True))
    connection.recv(4096)
    process.kill()
    process.wait(5)
    wait_for(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, 1.0)


def test_the_server_ends_with_a_status_of_its_own_when_its_engine_dies_for_good(process_server):
    process, url = process_server(sim=SLOW, options=ServerOptions(port=0, max_engine_restarts=0))
    (engine,) = engines_of(process)
    engine.kill()
    wait_for(lambda: httpx.get(url + "/ready").json()["status"] == "dead")
    assert process.wait(10) == 5
    assert "SIGKILL" in process.stderr.read()


def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_error(process_server):
    process, _ = process_server(sim=SimOptions(fault="startup"), ready=False)
    assert process.wait(10) == 4
    assert process.stderr.read().strip() == "The simulated model is corrupt. Choose another fault."


def test_only_loopback_listens_and_no_port_but_the_one(process_server):
    process, url = process_server()
    (engine,) = engines_of(process)
    listening = [
        each.laddr
        for one in (psutil.Process(process.pid), engine)
        for each in one.net_connections("inet")
        if each.status == psutil.CONN_LISTEN
    ]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", int(url.rsplit(":", 1)[1]))]


def test_a_port_in_use_says_what_to_do():
    with listen("127.0.0.1", 0) as first, pytest.raises(ConfigError, match=r"in use.*--port"):
        listen("127.0.0.1", first.getsockname()[1])
    with pytest.raises(ConfigError, match="Check --host"):
        listen("192.0.2.1", 0)


def test_options_survive_the_way_to_a_process():
    options = ServerOptions(port=0, api_key=("a", "b"), served_model_name=("x",))
    assert msgspec.json.decode(msgspec.json.encode(options), type=ServerOptions) == options
