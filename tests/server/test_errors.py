"""Every way to ask wrongly gets one clear answer, and the server goes on."""

from __future__ import annotations

import http.client
import json

import pytest

from octavo.config import ServerOptions

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server(start_server):
    with start_server(options=ServerOptions(port=0, max_body_bytes=20_000, max_logprobs=5)) as running:
        yield running
        assert running.get("/ready").json() == {"status": "ready"}
        assert running.post(COMPLETIONS, prompt="ab", max_tokens=2)["choices"][0]["text"] == "ab"


def refused(reply, status, code, param=None):
    assert reply.status_code == status, reply.text
    assert reply.headers["x-request-id"]
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param) and error["message"]
    return error


BAD_VALUES = [
    ("temperature", -1),
    ("temperature", 2.1),
    ("top_p", 0),
    ("top_k", -2),
    ("min_p", 1.5),
    ("n", 0),
    ("n", 129),
    ("max_tokens", 0),
    ("max_tokens", -5),
    ("min_tokens", 99),
    ("repetition_penalty", 0),
    ("presence_penalty", 3),
    ("frequency_penalty", -2.5),
    ("seed", 2**63),
    ("stop", [""]),
    ("stop_token_ids", [320]),
    ("allowed_token_ids", [-1]),
    ("logit_bias", {"1": 200}),
    ("logit_bias", {"99999": 1}),
    ("logprobs", 6),
    ("prompt_logprobs", -1),
    ("priority", 2**40),
    ("cache_salt", "no spaces please"),
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_values_out_of_range_are_named(server, name, value):
    with server.client() as client:
        reply = client.post(COMPLETIONS, json={"prompt": "ab", name: value})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error" and error["param"] == name


BAD_TYPES = [
    ("temperature", "hot"),
    ("n", 1.5),
    ("n", True),
    ("max_tokens", "16"),
    ("stop", 5),
    ("stop", [1]),
    ("logit_bias", [1]),
    ("logit_bias", {"foo": 1}),
    ("stream", "yes"),
    ("stream_options", []),
    ("prompt", 5),
    ("model", 5),
]


@pytest.mark.parametrize(("name", "value"), BAD_TYPES)
def test_wrong_types_are_named(server, name, value):
    with server.client() as client:
        refused(client.post(COMPLETIONS, json={"prompt": "ab", name: value}), 400, "invalid_type", name)


@pytest.mark.parametrize(
    "value", [["a", 1], [[1], "a"], [1, True], [None], [[["a"]]], [], [[]], "", [["a"]], [-1], [320]]
)
def test_prompts_must_be_of_one_kind(server, value):
    with server.client() as client:
        reply = client.post(COMPLETIONS, json={"prompt": value})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"nope", b'{"prompt": "\xff"}', b'{"temperature": NaN}', b'{"temperature": 1e999}', b"\x00"],
)
def test_bodies_that_are_no_json_objects_are_refused(server, data):
    with server.client() as client:
        reply = client.post(COMPLETIONS, content=data, headers={"content-type": "application/json"})
    assert reply.status_code == 400 and reply.json()["error"]["code"] in ("invalid_json", "invalid_type")


def test_deep_nesting_is_refused(server):
    data = b'{"prompt":' + b"[" * 9000 + b"]" * 9000 + b"}"
    with server.client() as client:
        reply = client.post(COMPLETIONS, content=data, headers={"content-type": "application/json"})
    assert reply.status_code == 400


def test_only_json_is_taken(server):
    with server.client() as client:  # a form post is what a foreign web page can send without asking
        reply = client.post(COMPLETIONS, content=b"{}", headers={"content-type": "text/plain"})
    refused(reply, 415, "unsupported_media_type")


@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_are_refused(server, chunked):
    body = b" " * 30_000
    with server.client() as client:
        content = iter([body[:15_000], body[15_000:]]) if chunked else body
        reply = client.post(COMPLETIONS, content=content, headers={"content-type": "application/json"})
    refused(reply, 413, "body_too_large")


def test_an_unknown_model_is_404(server):
    with server.client() as client:
        for path, body in ((COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": MESSAGES})):
            error = refused(client.post(path, json={**body, "model": "other"}), 404, "model_not_found", "model")
            assert error["type"] == "not_found_error" and "sim" in error["message"]
        refused(client.get("/v1/models/a/b"), 404, "model_not_found", "model")


@pytest.mark.parametrize("max_tokens", [None, 4096])
def test_a_prompt_longer_than_the_context_is_400(server, max_tokens):
    prompt = "x" * (5000 if max_tokens is None else 10)
    with server.client() as client:
        reply = client.post(COMPLETIONS, json={"prompt": prompt, "max_tokens": max_tokens})
    assert refused(reply, 400, "context_length_exceeded", reply.json()["error"]["param"])["type"] == (
        "invalid_request_error"
    )


def test_a_conversation_longer_than_the_context_is_400(server):
    with server.client() as client:
        reply = client.post(CHAT, json={"messages": [{"role": "user", "content": "x" * 5000}]})
    assert reply.json()["error"]["code"] == "context_length_exceeded" and reply.status_code == 400


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("messages", {"messages": []}),
        ("messages", {}),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "f f"}}]}),
        ("response_format", {"response_format": {"type": "xml"}}),
        ("modalities", {"modalities": ["audio"]}),
        ("web_search_options", {"web_search_options": {}}),
        ("top_logprobs", {"top_logprobs": 3}),
        ("logprobs", {"logprobs": True, "top_logprobs": 6}),
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("add_generation_prompt", {"continue_final_message": True}),
        ("chat_template_kwargs", {"chat_template_kwargs": {"messages": []}}),
    ],
)
def test_chats_that_cannot_be_served_as_written_say_why(server, param, body):
    with server.client() as client:
        reply = client.post(CHAT, json={"messages": MESSAGES, **body} if param != "messages" or body else {})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"].split("[")[0] == param


@pytest.mark.parametrize(
    "body", [{"suffix": "x"}, {"best_of": 3, "stream": True}, {"best_of": 3, "use_beam_search": True}]
)
def test_completions_that_cannot_be_served_as_written_say_why(server, body):
    with server.client() as client:
        refused(client.post(COMPLETIONS, json={"prompt": "a", **body}), 400, "unsupported_value", next(iter(body)))


def test_routes_and_methods_that_are_not_there(server):
    with server.client() as client:
        refused(client.get("/nothing"), 404, "unknown_route")
        reply = client.get(COMPLETIONS)
        refused(reply, 405, "method_not_allowed")
        assert reply.headers["allow"] == "POST"
        assert client.delete("/v1/models").headers["allow"] == "GET"
        assert client.head("/v1/models").status_code == 200 and client.head("/v1/models").content == b""


def test_requests_that_are_no_http_get_400_and_harm_nobody(server):
    host, port = server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    connection.connect()
    connection.sock.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
    assert b"400" in connection.sock.recv(1000)
    connection.close()


def test_the_request_id_comes_back_unless_it_is_indecent(server):
    with server.client() as client:
        assert client.get("/v1/models", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
        assert client.get("/v1/models", headers={"x-request-id": "a b<"}).headers["x-request-id"] != "a b<"
        reply = client.post(COMPLETIONS, json={}, headers={"x-request-id": "mine-2"})
    assert reply.headers["x-request-id"] == "mine-2"


def test_a_row_that_fails_in_the_engine_is_a_500_and_a_stream_tells_it_in_an_event(start_server):
    from octavo.sim import SimOptions

    with start_server(sim=SimOptions(fault="fail", fault_step=3)) as running:
        error = running.post(COMPLETIONS, status=500, prompt="abc", max_tokens=9)["error"]
        assert error["code"] == "request_failed" and error["type"] == "server_error"
        assert running.post(COMPLETIONS, prompt="abc", max_tokens=3)["choices"][0]["text"] == "abc"
    with start_server(sim=SimOptions(fault="fail", fault_step=3)) as running:
        raw = running.raw_stream(COMPLETIONS, prompt="abc", max_tokens=9)
        last = raw.decode().strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "request_failed"
        assert b"[DONE]" not in raw
