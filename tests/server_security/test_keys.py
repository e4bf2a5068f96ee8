"""Keys: where they come from, that nothing opens without one, and that only hashes of them stay."""

from __future__ import annotations

import asyncio
import hmac
import signal

import httpx
import pytest

from octavo.config import ServerOptions
from octavo.errors import ConfigError
from octavo.server import auth
from octavo.server.app import App
from octavo.server.auth import PUBLIC, KeyRing, check_host, is_loopback
from octavo.server.http import HttpError
from octavo.server.serve import check_exposure
from tests.server.conftest import NO_TLS

BEARER = (b"authorization", b"Bearer second-key")


@pytest.fixture
def ring():
    return KeyRing(["first-key", "second-key"])


@pytest.mark.security("A30")
@pytest.mark.parametrize(
    "headers",
    [
        [BEARER],
        [(b"authorization", b"bearer  second-key ")],
        [(b"x-api-key", b"second-key")],
        [(b"x-api-key", b"second-key"), BEARER],
    ],
)
def test_a_key_opens_in_either_header(ring, headers):
    assert ring.identify(headers) == ring.identify([BEARER]) != ring.identify([(b"x-api-key", b"first-key")])


@pytest.mark.security("A30")
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"Basic second-key")],
        [(b"authorization", b"second-key")],
        [(b"authorization", b"Bearer second-key2")],
        [(b"authorization", b"Bearer SECOND-KEY")],
        [(b"x-api-key", b"")],
        [(b"x-api-key", b"\xff\x00")],
        [BEARER, (b"x-api-key", b"first-key")],
        [BEARER, (b"authorization", b"Bearer first-key")],
        [BEARER, (b"authorization", b"Basic x")],
        [(b"cookie", b"Bearer second-key")],
    ],
)
def test_nothing_else_opens_nor_two_different_keys(ring, headers):
    assert ring.identify(headers) is None


@pytest.mark.security("A31")
def test_a_key_is_compared_with_all_in_constant_time(ring, monkeypatch):
    compared = []

    def compare(one, other):
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for key in (b"first-key", b"second-key", b"no"):
        compared.clear()
        ring.identify([(b"x-api-key", key)])
        assert compared == [(32, 32), (32, 32)]


@pytest.mark.security("A31", "A37")
def test_only_hashes_of_keys_stay(ring):
    assert "second-key" not in repr(vars(ring)) and "second-key" not in ring.identify([BEARER])


def test_keys_come_from_flags_file_and_environment(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nin-file\n\n  also-in-file  \n")
    options = ServerOptions(api_key=("by-flag",), api_key_file=str(file))
    ring = KeyRing.of(options, {"OCTAVO_API_KEY": "in-environment, other"})
    assert len(ring) == 5
    for key in (b"by-flag", b"in-file", b"also-in-file", b"in-environment", b"other"):
        assert ring.identify([(b"x-api-key", key)])
    file.write_text("new\n")
    assert ring.reload() and len(ring) == 4
    assert ring.identify([(b"x-api-key", b"new")]) and not ring.identify([(b"x-api-key", b"in-file")])
    for damage in (b"", b"# nothing\n", b"\xff\xfe", b"a key\n", b"x" * (2 << 20)):
        file.write_bytes(damage)
        assert not ring.reload() and ring.identify([(b"x-api-key", b"new")])
    file.unlink()
    assert not ring.reload() and len(ring) == 4
    with pytest.raises(ConfigError, match="cannot be read"):
        KeyRing.of(options, {})


@pytest.mark.security("A30")
@pytest.mark.parametrize("key", ["", " ", "two words", "x" * 513, "é", "tab\t"])
def test_keys_that_are_none_are_refused(key):
    with pytest.raises(ConfigError, match="visible ASCII"):
        KeyRing([key])


def test_too_many_keys_are_refused():
    with pytest.raises(ConfigError, match="more than 1000"):
        KeyRing([f"key-{number}" for number in range(1001)])


@pytest.mark.security("A30", "A1")
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "192.168.1.2", "example.org", ""])  # noqa: S104
def test_other_machines_need_a_key(host):
    with pytest.raises(ConfigError, match="OCTAVO_API_KEY"):
        check_exposure(ServerOptions(host=host), KeyRing())
    check_exposure(ServerOptions(host=host), KeyRing(["k"]))
    check_exposure(ServerOptions(host=host, allow_unauthenticated=True), KeyRing())


def test_loopback_is_the_default_and_needs_none():
    check_exposure(ServerOptions(), KeyRing())
    for host in ("127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"):
        assert is_loopback(host)


@pytest.mark.security("A36")
def test_a_server_on_loopback_goes_by_no_strangers_name():
    allowed = frozenset({"proxy.example"})
    for host in (
        b"127.0.0.1:8000",
        b"localhost",
        b"box",
        b"[::1]:8000",
        b"a.localhost:1",
        b"PROXY.example",
        b"10.0.0.7",
    ):
        check_host([(b"host", host)], allowed)
    check_host([], allowed)
    for host in (
        b"evil.example",
        b"evil.example:8000",
        b"127.0.0.1.evil.example",
        b"localhost.evil.example.",
        b"x.y@127",
    ):
        with pytest.raises(HttpError) as refused:
            check_host([(b"host", host)], allowed)
        assert refused.value.status == 403
    with pytest.raises(HttpError, match="two Host"):
        check_host([(b"host", b"a"), (b"host", b"b")], allowed)


@pytest.mark.security("A36")
def test_a_page_cannot_have_a_simple_request_answered(server):
    with server.client() as http:
        rebound = http.get("/v1/models", headers={"host": "evil.example"})
        assert rebound.status_code == 403 and rebound.json()["error"]["code"] == "host_not_allowed"
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            reply = http.post("/v1/completions", content=b'{"prompt": "a"}', headers={"content-type": kind})
            assert reply.status_code == 415
        preflight = http.options("/v1/completions", headers={"origin": "http://evil.example"})
        assert preflight.status_code == 405
        assert not any(name.startswith("access-control") for name in preflight.headers)


def test_the_host_is_no_matter_where_a_key_is_needed(start_server):
    options = ServerOptions(port=0, api_key=("k",))
    with start_server(options=options) as running, running.client(headers={"x-api-key": "k"}) as http:
        assert http.get("/v1/models", headers={"host": "llm.example"}).status_code == 200


def routes_and_variants(app: App):
    for path in (*app._routes, "/v1/models/x", "/nothing", "/"):
        for variant in ("", "/", "?x=/live", "%2e", ";/live", "/%2e%2e/live", "/../live", "#/live"):
            yield path + variant
        yield "/" + path
        yield path.upper()
        yield path.replace("/", "/%2f", 1)


@pytest.mark.security("A30")
def test_every_route_in_every_spelling_wants_a_key(start_server):
    """Paths go over the wire as they are; a Host that names a public path changes nothing."""
    with start_server(options=ServerOptions(port=0, api_key=("k",))) as running:
        host, port = running.url.removeprefix("http://").split(":")

        async def ask(method, target):
            reader, writer = await asyncio.open_connection(host, int(port))
            head = f"{method} {target} HTTP/1.1\r\nHost: x/live\r\nX-Original-URL: /live\r\n"
            writer.write(head.encode() + b"Content-Length: 0\r\nConnection: close\r\n\r\n")
            status = int((await reader.read()).split(b" ", 2)[1])
            writer.close()
            return method, target, status

        async def main():
            targets = [each for each in routes_and_variants(running.app) if each.partition("?")[0] not in PUBLIC]
            return await asyncio.gather(*(ask(m, t) for t in targets for m in ("GET", "POST", "DELETE")))

        replies = asyncio.run(main())
        assert len(replies) > 200
        opened = {(method, target, status) for method, target, status in replies if status not in (400, 401)}
        # "#" ends the path, so these ask for public ones, or are those
        assert {target.partition("#")[0] for _, target, _ in opened} <= PUBLIC


def test_sighup_reads_the_keys_again(process_server, tmp_path):
    file = tmp_path / "keys"
    file.write_text("old\n")
    process, url = process_server(options=ServerOptions(port=0, api_key_file=str(file)))
    with httpx.Client(base_url=url, verify=NO_TLS, timeout=10) as http:
        assert http.get("/v1/models", headers={"x-api-key": "old"}).status_code == 200
        file.write_text("new\n")
        process.send_signal(signal.SIGHUP)
        for _ in range(100):
            if http.get("/v1/models", headers={"x-api-key": "new"}).status_code == 200:
                break
        assert http.get("/v1/models", headers={"x-api-key": "new"}).status_code == 200
        assert http.get("/v1/models", headers={"x-api-key": "old"}).status_code == 401


def test_four_routes_are_public():
    assert {"/live", "/ready", "/health", "/startup"} == auth.PUBLIC
