"""What a client may send: how much, how deep, how many, how slowly; and how it is told."""

from __future__ import annotations

import asyncio
import json
import time

import httpx
import psutil
import pytest

from octavo.config import ServerOptions
from octavo.errors import InvalidRequestError
from octavo.frontend.caller import Caller
from octavo.frontend.drain_rate import DrainRate
from octavo.server import limits
from octavo.server.limits import check_shape, deadline_of
from octavo.sim import SimOptions
from tests.patience import BUSY
from tests.server.conftest import NO_TLS

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SLOW = SimOptions(step_seconds=0.02)
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def address(running):
    host, port = running.url.removeprefix("http://").split(":")
    return host, int(port)


def talk(running, *parts, pause=0.0):
    """Send parts over one connection; all that comes back until it is closed, and how long that took."""

    async def main():
        reader, writer = await asyncio.open_connection(*address(running))
        start = time.monotonic()
        answer = asyncio.create_task(reader.read())
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause)
                if answer.done():
                    break
        except ConnectionError:
            pass
        try:
            raw = await asyncio.wait_for(answer, 20)
        finally:
            writer.close()
        return raw, time.monotonic() - start

    return asyncio.run(main())


def status_and_code(raw):
    head, _, body = raw.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), json.loads(body)["error"]["code"]


# -- the shape of JSON ---------------------------------------------------------------------------------------------


def nested(depth, opening="[", closing="]"):
    return (opening * depth + closing * depth).encode()


@pytest.mark.security("A23")
@pytest.mark.parametrize(
    "data",
    [
        nested(64),
        b'{"a":' * 64 + b"1" + b"}" * 64,
        b'{"text": "' + b"[{" * 5000 + b'"}',
        b'{"text": "\\"' + b"[" * 5000 + b'\\\\"}',
        b"[" + b"[[],{}]," * 5000 + b"[]]",
        b"[" + b'{"role":"user","content":"]]]}}}"},' * 5000 + b"1]",
        b"\xff\xfe[[[",
        b"",
    ],
)
def test_shapes_that_are_fine(data):
    check_shape(data)


@pytest.mark.security("A23")
@pytest.mark.parametrize(
    "data",
    [
        nested(65),
        nested(100_000),
        b"[" * 1_000_000,
        b'{"a":[' * 33 + b"]}" * 33,
        b'{"a":' * 65 + b"1" + b"}" * 65,
        b"[[],[]," + nested(65) + b",[]]",
        b'["\\\\",' + nested(65) + b"]",
        b'["\\"[",' + nested(65) + b"]",
        b"[1," * 4_000_000,
        b"[" + b"0," * 6_000_000 + b"0]",
        b"[" + b"[]," * 300_000 + b"[]]",
    ],
)
def test_shapes_that_are_refused_at_once(data):
    start = time.process_time()
    with pytest.raises(InvalidRequestError) as refused:
        check_shape(data)
    assert refused.value.code in ("too_deep", "too_many_values")
    assert time.process_time() - start < 0.5


@pytest.mark.security("A23")
def test_the_worst_shape_costs_little():
    block = nested(limits.MAX_DEPTH)
    data = b"[" + b",".join([block[1:-1]] * (limits.MAX_CONTAINERS // limits.MAX_DEPTH)) + b"]"
    start = time.process_time()
    check_shape(data)
    assert time.process_time() - start < 0.5


# -- heads, bodies, connections ------------------------------------------------------------------------------------


@pytest.mark.security("A23")
@pytest.mark.parametrize(
    ("parts", "status", "code"),
    [
        ([HEAD + b"x: " + b"y" * 70_000 + b"\r\n\r\n"], 431, "headers_too_large"),
        ([HEAD + b"x-endless: ", *[b"y" * 10_000] * 20], 431, "headers_too_large"),
        ([HEAD + b"x" * 200_000], 431, "headers_too_large"),
        ([HEAD + b"".join(b"x-%d: y\r\n" % i for i in range(200)) + b"\r\n"], 431, "headers_too_large"),
        ([b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"], 414, "uri_too_long"),
        ([b"GET /", *[b"a" * 4000] * 20], 414, "uri_too_long"),
        ([b"\x16\x03\x01 no http at all\r\n\r\n"], 400, "invalid_http"),
        ([HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}"], 400, "invalid_http"),
        ([HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"], 400, "invalid_http"),
        ([HEAD + b"Content-Length: -1\r\n\r\n{}"], 400, "invalid_http"),
        ([HEAD + b"Content-Length: 9" + b"9" * 5000 + b"\r\n\r\n{}"], 400, "invalid_http"),
        ([HEAD + b"Content-Length: 999999999999\r\n\r\n{}"], 413, "body_too_large"),
        ([HEAD + b"Content-Encoding: gzip\r\nConnection: close\r\n\r\n"], 415, "unsupported_encoding"),
    ],
)
def test_heads_that_are_too_much_get_json_and_an_end(server, parts, status, code):
    raw, seconds = talk(server, *parts)
    assert status_and_code(raw) == (status, code)
    assert seconds < 2
    assert server.post(COMPLETIONS, prompt="ab", max_tokens=2)["choices"]


@pytest.mark.parametrize("split", [1, 400, 100_000])
@pytest.mark.parametrize("offer", [b"h2c", b"websocket", b"TLS/1.3"])
def test_an_offer_of_another_protocol_is_ignored_and_the_body_read(server, offer, split):
    """As Java's client sends with every request."""
    body = json.dumps({"prompt": "ab", "max_tokens": 4, "padding": "u" * 1000}).encode()
    data = HEAD + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %s\r\nContent-Length: %d\r\n\r\n" % (
        offer,
        len(body),
    )
    data += body
    first = len(data) - len(body)
    raw, _ = talk(server, data[: first + split - 1], *filter(None, [data[first + split - 1 :]]), pause=0.01)
    assert raw.startswith(b"HTTP/1.1 200") and b'"abab"' in raw


@pytest.mark.security("A23")
def test_an_endless_body_is_cut_at_the_limit_and_not_kept(start_server):
    options = ServerOptions(port=0, max_body_bytes=1 << 20)
    with start_server(options=options) as running:
        before = psutil.Process().memory_info().rss
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
        raw, _ = talk(running, head, *[chunk] * 40)
        assert status_and_code(raw) == (413, "body_too_large")
        with pytest.raises(ConnectionError):  # who does not stop then is cut off
            talk(running, head, *[chunk] * 1000)
        assert psutil.Process().memory_info().rss - before < 48 << 20


@pytest.mark.security("A23")
def test_all_bodies_together_are_bounded(start_server):
    options = ServerOptions(port=0, max_body_bytes=40_000, max_body_bytes_in_all=100_000)
    with start_server(sim=SLOW, options=options) as running:
        body = {"prompt": "ab", "max_tokens": 3000, "padding": "u" * 30_000}

        async def main():
            async with httpx.AsyncClient(base_url=running.url, verify=NO_TLS, timeout=20) as client:
                tasks = [asyncio.create_task(client.post(COMPLETIONS, json=body)) for _ in range(3)]
                while running.llm.num_open < 3:
                    await asyncio.sleep(0.01)
                refused = await client.post(COMPLETIONS, json=body)
                assert refused.status_code == 503 and "bytes of requests" in refused.json()["error"]["message"]
                assert (await client.post(COMPLETIONS, json={"prompt": "ab", "max_tokens": 2})).status_code == 200
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(main())
        running.wait(lambda: running.app.num_exchanges == 0)
        assert running.app._bodies.free == running.app._bodies.size == 100_000


@pytest.mark.security("A23")
def test_who_sends_slowly_is_not_waited_for(start_server):
    options = ServerOptions(port=0, read_timeout=0.4)
    with start_server(options=options) as running:
        raw, seconds = talk(running, *[HEAD[i : i + 1] for i in range(60)], pause=0.02)
        assert status_and_code(raw) == (408, "request_timeout") and seconds < 1.5
        drip = [b"1\r\n \r\n"] * 100
        raw, seconds = talk(running, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *drip, pause=0.02)
        assert status_and_code(raw) == (408, "request_timeout") and seconds < 1.5
        raw, seconds = talk(running)
        assert raw == b"" and seconds < 1.5
        # one that is slow but steady, 8 KiB each tenth of a second, is waited for
        body = json.dumps({"prompt": "a", "max_tokens": 1, "padding": "u" * 60_000}).encode()
        head = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        raw, seconds = talk(running, head, *[body[i : i + 8192] for i in range(0, len(body), 8192)], pause=0.1)
        assert b"200 OK" in raw and seconds > 0.6


@pytest.mark.security("A23")
def test_connections_are_bounded_and_probes_still_answered(start_server, monkeypatch):
    monkeypatch.setattr("octavo.server.connection.RESERVED_CONNECTIONS", 3)
    with start_server(options=ServerOptions(port=0, max_connections=4)) as running:

        async def main():
            held = [await asyncio.open_connection(*address(running)) for _ in range(4)]
            await asyncio.sleep(0.1)
            async with httpx.AsyncClient(base_url=running.url, verify=NO_TLS) as http:
                refused = await http.get("/v1/models")
                assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
                assert refused.json()["error"]["code"] == "overloaded"
                assert (await http.get("/ready")).status_code == 200
                more = [await asyncio.open_connection(*address(running)) for _ in range(3)]
                raw = await asyncio.wait_for(more[-1][0].read(), 5)
                assert status_and_code(raw) == (503, "overloaded")
                for _, writer in (*held, *more):
                    writer.close()
                await asyncio.sleep(0.1)
            async with httpx.AsyncClient(base_url=running.url, verify=NO_TLS) as http:
                assert (await http.get("/v1/models")).status_code == 200

        asyncio.run(main())


def test_descriptors_are_asked_for_and_the_limit_is_what_there_are(monkeypatch):
    asked = []
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(limits.resource, "setrlimit", lambda _, pair: asked.append(pair))
    assert limits.raise_descriptor_limit(500) == 500 and asked == []
    assert limits.raise_descriptor_limit(2000) == 2000 and asked == [(2320, 4096)]
    assert limits.raise_descriptor_limit(8192) == 4096 - 320 and asked[-1] == (4096, 4096)


# -- how many, how long --------------------------------------------------------------------------------------------


@pytest.mark.security("A12")
@pytest.mark.parametrize(
    "body",
    [
        {"prompt": ["a"] * 100, "n": 11},
        {"prompt": ["a"] * 1025},
        {"prompt": [[1]] * 1024, "n": 128},
        {"prompt": "a", "n": 10**9},
    ],
)
def test_choices_in_all_are_bounded(server, body):
    start = time.monotonic()
    assert server.post(COMPLETIONS, status=400, **body)["error"]["param"] in ("n", "prompt")
    assert time.monotonic() - start < 0.5 * BUSY


def test_a_request_past_its_time_ends_and_says_so(start_server):
    with start_server(sim=SLOW, options=ServerOptions(port=0, request_timeout=0.3)) as running:
        late = running.post(COMPLETIONS, status=504, prompt="ab", max_tokens=3000)
        assert late["error"]["code"] == "deadline_exceeded" and late["error"]["type"] == "timeout_error"
        raw = running.raw_stream(CHAT, messages=[{"role": "user", "content": "x"}], max_tokens=3000)
        assert b'"deadline_exceeded"' in raw.strip().split(b"\n\n")[-1] and b"[DONE]" not in raw
        running.wait(lambda: running.llm.num_open == 0 and running.llm.stats.num_running == 0)
        assert running.llm.stats.num_free_pages == running.llm.stats.num_pages
        assert running.post(COMPLETIONS, prompt="ab", max_tokens=3)["choices"]


def test_a_client_may_ask_for_less_time_but_not_for_more(start_server):
    with (
        start_server(sim=SLOW, options=ServerOptions(port=0, request_timeout=1.0)) as running,
        running.client() as http,
    ):
        for seconds, low, high in (("0.2", 0.15, 1.0 * BUSY), ("100", 0.95, 3 * BUSY)):
            start = time.monotonic()
            body = {"prompt": "ab", "max_tokens": 3000}
            reply = http.post(COMPLETIONS, json=body, headers={"x-request-timeout": seconds})
            assert reply.status_code == 504 and low < time.monotonic() - start < high
        for bad in ("", "0", "-1", "nan", "soon", "1" * 40):
            reply = http.post(COMPLETIONS, json={"prompt": "ab"}, headers={"x-request-timeout": bad})
            assert reply.status_code == 400, bad


def test_what_waits_past_its_time_never_starts(start_server):
    with start_server(sim=SLOW, max_num_seqs=1) as running, running.client() as http:

        async def main():
            async with httpx.AsyncClient(base_url=running.url, verify=NO_TLS, timeout=20) as client:
                first = asyncio.create_task(client.post(COMPLETIONS, json={"prompt": "ab", "max_tokens": 50}))
                while not running.llm.stats.num_running:
                    await asyncio.sleep(0.01)
                second = await client.post(COMPLETIONS, json={"prompt": "cd"}, headers={"x-request-timeout": "0.2"})
                assert second.status_code == 504
                assert (await first).status_code == 200

        asyncio.run(main())
        assert http.get("/ready").status_code == 200
        running.wait(lambda: running.llm.stats.prompt_tokens == 2)


def test_no_limit_is_no_deadline():
    assert deadline_of({}, 0.0) == float("inf")
    assert 0 < deadline_of({}, 5.0) - time.monotonic() <= 5


def test_the_time_to_come_back_follows_the_measured_rate():
    rate = DrainRate()
    assert rate.seconds_for(10, 100.0) == 5.0  # nothing is known
    for number in range(100):
        rate.note(100.0 + number / 10)  # ten a second
    assert rate.per_second(110.0) == pytest.approx(10.0)
    assert rate.seconds_for(50, 110.0) == pytest.approx(5.0)
    assert rate.seconds_for(1, 110.0) == 1.0
    assert rate.seconds_for(10**6, 110.0) == 120.0
    assert rate.per_second(135.0) == pytest.approx(50 / 30)  # those of the first five seconds are forgotten
    assert rate.per_second(200.0) == 0.0


def test_a_full_queue_names_the_time_that_it_takes_to_drain(start_server):
    """One sequence at a time, 10 steps of 20 ms each: five requests a second."""
    with start_server(sim=SLOW, max_num_seqs=1, max_num_queued_reqs=20) as running:

        async def main():
            async with httpx.AsyncClient(base_url=running.url, verify=NO_TLS, timeout=30) as client:
                body = {"prompt": "ab", "max_tokens": 10}
                tasks = [asyncio.create_task(client.post(COMPLETIONS, json=body)) for _ in range(16)]
                await asyncio.sleep(1.0)
                rest = [asyncio.create_task(client.post(COMPLETIONS, json=body)) for _ in range(30)]
                done, _ = await asyncio.wait(rest, return_when=asyncio.FIRST_COMPLETED)
                refused = done.pop().result()
                for task in (*tasks, *rest):
                    task.cancel()
                return refused

        refused = asyncio.run(main())
        assert refused.status_code == 503 and refused.headers["x-should-retry"] == "true"
        rate = running.llm._drain_rate.per_second(time.monotonic())
        assert int(refused.headers["retry-after"]) == 1 and rate > 1


# -- keys side by side ---------------------------------------------------------------------------------------------


def test_one_keys_full_queue_is_429_and_others_get_in(start_server):
    options = ServerOptions(port=0, api_key=("one", "two"), max_queued_reqs_per_key=3)
    with start_server(sim=SLOW, options=options, max_num_seqs=1) as running:

        async def main():
            async with httpx.AsyncClient(base_url=running.url, verify=NO_TLS, timeout=30) as client:

                def ask(key, max_tokens=3000):
                    body = {"prompt": "ab", "max_tokens": max_tokens}
                    return asyncio.create_task(client.post(COMPLETIONS, json=body, headers={"x-api-key": key}))

                open_ = [ask("one")]
                while not running.llm.stats.num_running:
                    await asyncio.sleep(0.01)
                open_ += [ask("one") for _ in range(3)]
                while running.llm.num_open < 4:
                    await asyncio.sleep(0.01)
                refused = await ask("one")
                assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
                assert refused.json()["error"]["type"] == "rate_limit_error"
                assert refused.json()["error"]["code"] == "rate_limit_exceeded"
                other = ask("two", 2)
                await asyncio.sleep(0.1)
                assert not other.done() and running.llm.num_open == 5
                for task in open_:
                    task.cancel()
                assert (await other).status_code == 200

        asyncio.run(main())


@pytest.mark.security("A32")
@pytest.mark.parametrize(("isolation", "shared"), [("auto", False), ("key", False), ("none", True)])
def test_keys_share_cached_pages_only_if_they_are_to(start_server, isolation, shared):
    options = ServerOptions(port=0, api_key=("one", "two"), prefix_cache_isolation=isolation)
    with start_server(options=options) as running, running.client() as http:

        def cached(key, **more):
            body = {"prompt": "a secret prompt of several pages, " * 5, "max_tokens": 2, **more}
            reply = http.post(COMPLETIONS, json=body, headers={"x-api-key": key}).json()
            return reply["usage"]["prompt_tokens_details"]["cached_tokens"]

        assert cached("one") == 0
        assert cached("one") > 0
        assert (cached("two") > 0) == shared
        assert cached("two") > 0
        assert cached("one", cache_salt="s") == 0 < cached("one", cache_salt="s")


@pytest.mark.security("A32")
def test_a_salt_cannot_be_made_to_meet_another_keys():
    """Whoever knew a key's derived salt and sent it as their own would get something else again."""
    one, two = Caller("one", b"1"), Caller("two", b"2")
    salts = [caller.salt(salt) for caller in (one, two) for salt in ("", "a", one.salt("a"), two.salt("a"))]
    assert len(set(salts)) == 8 and Caller().salt("a") == "a"


# -- streams -------------------------------------------------------------------------------------------------------


def test_a_silent_stream_gets_comments_and_clients_skip_them(start_server):
    import openai

    options = ServerOptions(port=0, sse_keep_alive=0.1)
    with start_server(sim=SimOptions(step_seconds=0.25), options=options) as running:
        raw = running.raw_stream(COMPLETIONS, prompt="ab", max_tokens=3)
        assert raw.count(b": keep-alive\n\n") >= 2 and raw.endswith(b"data: [DONE]\n\n")
        with openai.OpenAI(base_url=running.url + "/v1", api_key="x", max_retries=0) as client:
            events = client.completions.create(model="sim", prompt="ab", max_tokens=3, stream=True)
            assert "".join(event.choices[0].text for event in events) == "aba"


def test_a_stream_that_speaks_gets_none(start_server):
    options = ServerOptions(port=0, sse_keep_alive=0.3)
    with start_server(sim=SimOptions(step_seconds=0.05), options=options) as running:
        assert b"keep-alive" not in running.raw_stream(COMPLETIONS, prompt="ab", max_tokens=15)


def test_one_key_with_hundreds_of_requests_delays_anothers_by_about_one_request(start_server):
    """Two at a time, 10 steps of 10 ms each: in turn, the last of 300 would wait for 15 seconds."""
    options = ServerOptions(port=0, api_key=("many", "one"))
    with start_server(sim=SimOptions(step_seconds=0.01), options=options, max_num_seqs=2) as running:

        async def main():
            async with httpx.AsyncClient(
                base_url=running.url, verify=NO_TLS, timeout=60, limits=httpx.Limits(max_connections=None)
            ) as client:

                def ask(key):
                    body = {"prompt": "abcd", "max_tokens": 10}
                    return asyncio.create_task(client.post(COMPLETIONS, json=body, headers={"x-api-key": key}))

                flood = [ask("many") for _ in range(300)]
                while running.llm.num_open < 250:
                    await asyncio.sleep(0.02)
                start = time.monotonic()
                assert (await ask("one")).status_code == 200
                seconds = time.monotonic() - start
                still_waiting = running.llm.stats.num_waiting
                for task in flood:
                    task.cancel()
                return seconds, still_waiting

        seconds, still_waiting = asyncio.run(main())
        assert still_waiting > 100 and seconds < 1.0 * BUSY  # its own 0.1, one other's 0.1, and a busy machine
