"""Each process killed or stopped at each moment; disks, pools and descriptors used up; readers that do not read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time

import httpx
import msgspec
import psutil
import pytest

from octavo.config import EngineConfig, ServerOptions
from octavo.errors import ConfigError
from octavo.sim import SimOptions
from octavo.sim.serve import SimServe
from tests.patience import BUSY
from tests.server.conftest import NO_TLS

COMPLETIONS = "/v1/completions"
SLOW = SimOptions(step_seconds=0.02)
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
LONG = "a prompt of some length, " * 100


def client(url):
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, verify=NO_TLS, timeout=30, limits=limits)


def engine_of(process):
    (engine,) = psutil.Process(process.pid).children()
    return engine


def pid_of_engine(process):
    return next((child.pid for child in psutil.Process(process.pid).children()), None)


def gone(engine):
    with contextlib.suppress(psutil.NoSuchProcess):
        return not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
    return True


def wait_for(condition, seconds=5.0 * BUSY):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


async def until_ready(http, seconds=10.0 * BUSY):
    async with asyncio.timeout(seconds):
        while (await http.get("/ready")).status_code != 200:
            await asyncio.sleep(0.02)


def gauge(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(f"octavo:{name}{{")]
    return float(line.rsplit(" ", 1)[1])


async def until_gauge(http, name, value, seconds=5.0 * BUSY):
    async with asyncio.timeout(seconds):
        while gauge((await http.get("/metrics")).text, name) < value:
            await asyncio.sleep(0.02)


def text_of(reply):
    return reply.json()["choices"][0]["text"]


def ask(http, prompt, max_tokens, **more):
    return asyncio.create_task(http.post(COMPLETIONS, json={"prompt": prompt, "max_tokens": max_tokens, **more}))


# -- the engine ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["rest", "prefill", "decode"])
def test_the_engine_is_killed(process_server, phase):
    """Seen in a second, replaced in five; what waited is answered, what had begun gets an error."""
    process, url = process_server(sim=SLOW, max_num_seqs=1, max_num_batched_tokens=16)

    async def main():
        async with client(url) as http:
            tasks = []
            if phase != "rest":
                prompt = LONG if phase == "prefill" else "ab"
                tasks = [ask(http, prompt, 1000, stream=True)]
                await until_gauge(http, "num_requests_running", 1)
                tasks.append(ask(http, prompt, 1000, stream=False))
                await until_gauge(http, "num_requests_open", 2)
            waits = [ask(http, f"w{number}", 6) for number in range(3)] if tasks else []
            await until_gauge(http, "num_requests_open", len(tasks) + len(waits))
            first = engine_of(process)
            first.kill()
            killed = time.monotonic()
            if tasks:
                streamed = await tasks[0]
                assert time.monotonic() - killed < 1.0 * BUSY
                last = json.loads(streamed.text.strip().split("\n\n")[-1].removeprefix("data: "))
                assert last["error"]["code"] == "engine_dead"
                tasks[1].cancel()  # it waited, and now begins anew
            async with asyncio.timeout(5 * BUSY):
                while pid_of_engine(process) in (None, first.pid):
                    await asyncio.sleep(0.02)
            await until_ready(http, 5.0 * BUSY)
            assert [text_of(await task) for task in waits] == [f"w{number}" * 3 for number in range(3)][: len(waits)]
            assert text_of(await ask(http, "xy", 4)) == "xyxy"
            assert gauge((await http.get("/metrics")).text, "engine_restarts_total") == 1
            second = engine_of(process)
            assert second.pid != first.pid and gone(first)
            await asyncio.gather(*tasks, return_exceptions=True)
            return second

    second = asyncio.run(main())
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 0 and gone(second)


def test_the_engine_is_stopped_for_good(process_server):
    """Hung after a quarter of --step-timeout, replaced after all of it."""
    process, url = process_server(sim=SLOW, options=ServerOptions(port=0, step_timeout=3.0))

    async def main():
        async with client(url) as http:
            task = ask(http, "ab", 3000)
            await until_gauge(http, "num_requests_running", 1)
            engine = engine_of(process)
            engine.suspend()
            start = time.monotonic()
            while (await http.get("/ready")).json()["status"] != "hung":
                await asyncio.sleep(0.05)
            assert time.monotonic() - start < 2.5 * BUSY
            reply = await task
            assert reply.status_code == 503 and "no sign of life" in reply.json()["error"]["message"]
            assert time.monotonic() - start < 6.0 * BUSY
            await until_ready(http)
            assert gone(engine) and text_of(await ask(http, "xy", 4)) == "xyxy"

    asyncio.run(main())


@pytest.mark.parametrize("who", ["engine", "server"])
def test_one_is_stopped_for_a_while_and_nobody_loses_anything(process_server, who):
    """Also if the server sleeps for longer than --step-timeout: that is no silence of the engine."""
    process, url = process_server(sim=SLOW, options=ServerOptions(port=0, step_timeout=3.0))

    async def main():
        async with client(url) as http:
            tasks = [ask(http, f"{number}|", 60, stream=number % 2 == 0) for number in range(4)]
            await until_gauge(http, "num_requests_running", 4)
            engine = engine_of(process)
            victim = engine if who == "engine" else psutil.Process(process.pid)
            victim.suspend()
            await asyncio.sleep(0.8 if who == "engine" else 3.6)
            victim.resume()
            replies = await asyncio.gather(*tasks)
            for number, reply in enumerate(replies):
                assert reply.status_code == 200
                if number % 2:
                    assert text_of(reply) == f"{number}|" * 30
                else:
                    assert reply.text.strip().endswith("[DONE]")
            assert engine_of(process).pid == engine.pid

    asyncio.run(main())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_engine_leaves_signals_to_the_server(process_server, number):
    process, url = process_server()
    engine_of(process).send_signal(number)
    time.sleep(0.2)
    assert httpx.get(url + "/ready", verify=NO_TLS).status_code == 200
    assert engine_of(process).status() != psutil.STATUS_ZOMBIE


# -- the server ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["load", "rest", "decode"])
def test_the_server_is_killed(process_server, phase, tmp_path, monkeypatch):
    """Within a second there is no engine, no folder and no listener left."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    sim = SimOptions(startup_seconds=20.0) if phase == "load" else SLOW
    process, url = process_server(sim=sim, ready=phase != "load")
    wait_for(lambda: psutil.Process(process.pid).children())
    engine = engine_of(process)
    if phase == "load":
        wait_for(lambda: not list(tmp_path.iterdir()) and len(engine.net_connections("unix")) > 0)
    if phase == "decode":
        host, port = url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)))
        body = b'{"prompt": "ab", "max_tokens": 3000, "stream": true}'
        connection.sendall(HEAD % len(body) + body)
        assert b"200 OK" in connection.recv(100)
    process.kill()
    process.wait(5)
    wait_for(lambda: gone(engine), 1.0)
    assert list(tmp_path.iterdir()) == []


# -- resources -----------------------------------------------------------------------------------------------------


def test_a_log_that_cannot_be_written_stops_nobody(sim_folder):
    """The standard error is a full disk."""
    config = EngineConfig.of(model="sim", tokenizer=str(sim_folder))
    what = msgspec.json.encode(SimServe(engine=config, server=ServerOptions(port=0), sim=SLOW)).decode() + "\n"
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(
            [sys.executable, "-m", "octavo.sim.serve"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=full, text=True,
        )  # fmt: skip
    try:
        process.stdin.write(what)
        process.stdin.flush()
        url = process.stdout.readline().strip()

        async def main():
            async with client(url) as http:
                host, port = url.removeprefix("http://").split(":")
                with socket.create_connection((host, int(port))) as connection:
                    connection.sendall(b"\x00 no http \r\n\r\n")  # which is logged
                    assert b"400" in connection.recv(100)
                first = engine_of(process).pid
                os.kill(first, signal.SIGKILL)  # which is logged too
                async with asyncio.timeout(5 * BUSY):
                    while pid_of_engine(process) in (None, first):
                        await asyncio.sleep(0.02)
                await until_ready(http)
                assert text_of(await ask(http, "xy", 4)) == "xyxy"

        asyncio.run(main())
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.communicate()


def test_no_place_for_temporary_files_is_said(sim_folder, tmp_path, monkeypatch):
    """A path too long for a socket; and a disk without a free inode."""
    import tempfile

    from octavo.engine.client import ProcessClient

    async def start():
        await ProcessClient(EngineConfig.of(model="sim")).start(None)

    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(ConfigError, match="TMPDIR"):
        asyncio.run(start())
    assert list(long.iterdir()) == []

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(ConfigError, match="No space left"):
        asyncio.run(start())


def test_descriptors_run_out(process_server):
    """New connections fail or wait; those that are open go on, and later ones come in again."""
    process, url = process_server(sim=SLOW)
    host, port = url.removeprefix("http://").split(":")

    async def main():
        async with client(url) as http:
            task = ask(http, "steady|", 70)
            await until_gauge(http, "num_requests_running", 1)
            before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
            few = psutil.Process(process.pid).num_fds() + 4
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (few, before[1]))
            held = []
            for _ in range(30):
                connection = socket.create_connection((host, int(port)), timeout=5)
                held.append(connection)
            await asyncio.sleep(0.3)
            assert text_of(await task) == "steady|" * 10
            for connection in held:
                connection.close()
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, before)
        await asyncio.sleep(1.2)
        async with client(url) as http:
            assert text_of(await ask(http, "xy", 4)) == "xyxy"

    asyncio.run(main())


def test_the_pool_is_full(process_server):
    """Sequences that need four times the pool together: all finish, with their text."""
    _, url = process_server(sim=SimOptions(num_pages=40), max_num_seqs=32)

    async def main():
        async with client(url) as http:
            tasks = [ask(http, f"number {number:02}|", 110, n=2) for number in range(20)]
            for number, task in enumerate(tasks):
                choices = (await task).json()["choices"]
                assert [choice["text"] for choice in choices] == [f"number {number:02}|" * 11] * 2
            metrics = (await http.get("/metrics")).text
            assert gauge(metrics, "num_preemptions_total") > 0
            assert gauge(metrics, "num_free_pages") == 40
            too_long = await ask(http, "x" * 700, 1)
            assert too_long.status_code == 400 and too_long.json()["error"]["code"] == "context_length_exceeded"

    asyncio.run(main())


# -- clients -------------------------------------------------------------------------------------------------------


def test_readers_that_do_not_read_are_cut_off_and_others_go_on(process_server):
    """Those of streams, and those of whole replies larger than all buffers."""
    process, url = process_server(options=ServerOptions(port=0, write_timeout=0.5))
    host, port = url.removeprefix("http://").split(":")

    def stuck(stream):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        body = {"prompt": "ab", "max_tokens": 2000, "n": 10, "stream": stream, "logprobs": 20}
        data = json.dumps(body).encode()
        connection.sendall(HEAD % len(data) + data)
        return connection

    async def main():
        async with client(url) as http:
            held = [stuck(stream=True), stuck(stream=False)]
            await asyncio.sleep(0.3)
            start = time.monotonic()
            for _ in range(3):
                assert text_of(await ask(http, "xy", 4)) == "xyxy"
            async with asyncio.timeout(25):
                while num_connections(process, int(port)) > 1:
                    await asyncio.sleep(0.1)
            assert gauge((await http.get("/metrics")).text, "num_requests_open") == 0
            assert time.monotonic() - start < 25
            for connection in held:
                connection.close()

    asyncio.run(main())


def num_connections(process, port):
    connections = psutil.Process(process.pid).net_connections("inet")
    return len([each for each in connections if each.laddr.port == port and each.status == "ESTABLISHED"])


def test_peers_that_vanish_are_probed_for(start_server):
    """Half-open connections: the kernel asks after a minute, four times, and then closes."""
    with start_server() as running:
        host, port = running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in connection.recv(100)
            mine = connection.getsockname()
            for fd in map(int, os.listdir("/proc/self/fd")):
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as other:
                    if (
                        other.type == socket.SOCK_STREAM
                        and other.family == socket.AF_INET
                        and other.getpeername() == mine
                    ):
                        assert other.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                        assert other.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
                        return
    raise AssertionError("the server's side was not found")
