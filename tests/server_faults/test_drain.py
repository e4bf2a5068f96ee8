"""The end that is asked for: what is open finishes, what comes later is refused, and nothing is lost in between."""

from __future__ import annotations

import asyncio
import json
import signal
import time

import httpx
import psutil
import pytest

from octavo.config import ServerOptions
from octavo.sim import SimOptions
from tests.patience import BUSY
from tests.server.conftest import NO_TLS

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SLOW = SimOptions(step_seconds=0.02)


def client(url):
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, verify=NO_TLS, timeout=30, limits=limits)


def body(number):
    return {"prompt": f"request {number:04}|", "max_tokens": 13 + number % 40, "stream": number % 2 == 0}


def is_whole(number, reply):
    """A reply with its text to the end, streamed or not."""
    expected = (f"request {number:04}|" * 5)[: 13 + number % 40]
    if number % 2:
        return reply.status_code == 200 and reply.json()["choices"][0]["text"] == expected
    events = [line[6:] for line in reply.text.split("\n\n") if line]
    text = "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])
    return reply.status_code == 200 and events[-1] == "[DONE]" and text == expected


def test_two_hundred_in_flight_and_none_is_lost(process_server):
    """A third runs, a third waits, and a third is still being sent when SIGTERM comes."""
    process, url = process_server(sim=SimOptions(step_seconds=0.01), max_num_seqs=64)
    engines = psutil.Process(process.pid).children()

    async def main():
        async with client(url) as http:
            go = asyncio.Event()

            async def slow_body(number):
                data = json.dumps(body(number)).encode()

                async def parts():
                    yield data[:20]
                    await go.wait()
                    yield data[20:]

                return await http.post(COMPLETIONS, content=parts(), headers={"content-type": "application/json"})

            tasks = [asyncio.create_task(http.post(COMPLETIONS, json=body(number))) for number in range(130)]
            tasks += [asyncio.create_task(slow_body(number)) for number in range(130, 200)]
            metrics = ""
            while "octavo:num_requests_open" not in metrics or open_requests(metrics) < 100:
                metrics = (await http.get("/metrics")).text
            process.send_signal(signal.SIGTERM)
            sent = time.monotonic()
            while (await http.get("/ready")).status_code == 200:
                pass
            assert time.monotonic() - sent < 1.0 * BUSY
            refused = await http.post(COMPLETIONS, json=body(1))
            assert refused.status_code == 503 and refused.json()["error"]["type"] == "overloaded_error"
            assert (await http.get("/live")).status_code == 200
            go.set()
            return await asyncio.gather(*tasks)

    replies = asyncio.run(main())
    assert [number for number, reply in enumerate(replies) if not is_whole(number, reply)] == []
    assert process.wait(5) == 0
    assert not any(engine.is_running() for engine in engines)


def open_requests(metrics):
    (line,) = [line for line in metrics.splitlines() if line.startswith("octavo:num_requests_open{")]
    return int(line.rsplit(" ", 1)[1])


def test_requests_are_taken_until_the_delay_is_over(process_server):
    process, url = process_server(options=ServerOptions(port=0, drain_delay=3.0))
    with httpx.Client(base_url=url, verify=NO_TLS, timeout=10) as http:
        process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        while http.get("/ready").status_code == 200:
            pass
        assert http.post(COMPLETIONS, json={"prompt": "ab", "max_tokens": 2}).status_code == 200
        assert time.monotonic() - start < 2.9
        assert process.wait(5 * BUSY) == 0 and time.monotonic() - start >= 2.9


@pytest.mark.parametrize("stream", [True, False])
def test_what_takes_too_long_ends_with_an_error_of_the_right_kind(process_server, stream):
    process, url = process_server(sim=SLOW, options=ServerOptions(port=0, drain_timeout=0.3))

    async def main():
        async with client(url) as http:
            request = http.post(CHAT, json={"messages": [{"role": "user", "content": "x"}], "stream": stream})
            task = asyncio.create_task(request)
            await asyncio.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            return await task

    reply = asyncio.run(main())
    error = reply.json() if not stream else json.loads(reply.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert error["error"]["type"] == "overloaded_error" and error["error"]["code"] == "overloaded"
    assert reply.status_code == (200 if stream else 503)
    assert process.wait(5) == 0


def test_a_second_signal_ends_at_once(process_server):
    process, url = process_server(sim=SLOW, options=ServerOptions(port=0, drain_delay=30.0))

    async def main():
        async with client(url) as http:
            task = asyncio.create_task(http.post(COMPLETIONS, json={"prompt": "ab", "max_tokens": 3000}))
            await asyncio.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            while (await http.get("/ready")).status_code == 200:
                pass
            process.send_signal(signal.SIGTERM)
            return await task

    start = time.monotonic()
    reply = asyncio.run(main())
    assert reply.status_code == 503 and process.wait(5) == 0
    assert time.monotonic() - start < 5 * BUSY


def test_a_signal_while_it_loads_ends_it(process_server):
    process, _ = process_server(sim=SimOptions(startup_seconds=30.0), ready=False)
    end = time.monotonic() + 10
    while not psutil.Process(process.pid).children():
        assert time.monotonic() < end
        time.sleep(0.02)
    engines = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 0
    assert not any(engine.is_running() for engine in engines)
