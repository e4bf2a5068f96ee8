"""Responses that are kept: read, listed, deleted, forgotten; each for the key that made it."""

from __future__ import annotations

import openai
import pytest

from octavo.config import ServerOptions
from octavo.server.responses_store import ResponseStore, Stored
from octavo.sim import SimOptions

PATH = "/v1/responses"


def made(server, headers=None, **more):
    with server.client(headers=headers or {}) as client:
        reply = client.post(PATH, json={"input": "a", "max_output_tokens": 4, **more})
    assert reply.status_code == 200, reply.text
    return reply.json()


def status_of(server, method, path, headers=None):
    with server.client(headers=headers or {}) as client:
        return client.request(method, path).status_code


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_is_read_and_deleted(server, stream):
    with server.client() as http, openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", http_client=http) as client:
        if stream:
            *_, last = client.responses.create(model="sim", input="a", max_output_tokens=4, stream=True)
            response = last.response
        else:
            response = client.responses.create(model="sim", input="a", max_output_tokens=4)
        assert client.responses.retrieve(response.id) == response
        client.responses.delete(response.id)
        with pytest.raises(openai.NotFoundError) as raised:
            client.responses.retrieve(response.id)
        assert raised.value.code == "response_not_found"


def test_items_of_the_input_come_in_pages(server):
    first = made(server, input=[{"role": "user", "content": str(number)} for number in range(5)])
    second = made(server, previous_response_id=first["id"], input="last")
    with server.client() as http, openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", http_client=http) as client:
        listed = client.responses.input_items.list(second["id"], order="asc", limit=3)
        texts = [item.content[0].text for item in listed]  # the client asks for the next pages
        assert texts == ["0", "1", "2", "3", "4", first["output"][0]["content"][0]["text"], "last"]
        newest = client.responses.input_items.list(second["id"], limit=1)
        assert newest.data[0].content[0].text == "last" and newest.has_more and newest.first_id == newest.last_id
    path = f"{PATH}/{second['id']}/input_items"
    for query in ("limit=0", "limit=101", "limit=x", "limit=٣", "order=up", "after=msg_none", "&".join(["a=1"] * 200)):
        assert server.get(f"{path}?{query}", 400).json()["error"]["message"]


def test_what_is_not_kept_is_not_there(server):
    response = made(server, store=False)
    assert response["store"] is False and status_of(server, "GET", f"{PATH}/{response['id']}") == 404
    error = server.post(PATH, 400, input="b", previous_response_id=response["id"])["error"]
    assert error["code"] == "previous_response_not_found"


def test_nothing_can_be_cancelled_or_streamed_again(server):
    response = made(server)
    with server.client() as client:
        reply = client.post(f"{PATH}/{response['id']}/cancel")
        assert reply.status_code == 400 and "background" in reply.json()["error"]["message"]
        assert client.post(f"{PATH}/resp_none/cancel").status_code == 404
        assert client.get(f"{PATH}/{response['id']}?stream=true").json()["error"]["param"] == "stream"
        reply = client.put(f"{PATH}/{response['id']}")
        assert reply.status_code == 405 and reply.headers["allow"] == "GET, HEAD, DELETE"
        assert client.head(f"{PATH}/{response['id']}").status_code == 200
        for path in (f"{PATH}/", f"{PATH}/compact", f"{PATH}/{response['id']}/else", f"{PATH}/resp_a%20b"):
            assert client.post(path, json={}).status_code == 404


def test_a_key_sees_its_own_responses_alone(start_server):
    mine, yours = ({"x-api-key": key} for key in ("one", "two"))
    with start_server(options=ServerOptions(port=0, api_key=("one", "two"))) as running:
        response = made(running, mine)
        path = f"{PATH}/{response['id']}"
        for method, where in (
            ("GET", path),
            ("GET", f"{path}/input_items"),
            ("DELETE", path),
            ("POST", path + "/cancel"),
        ):
            assert status_of(running, method, where, yours) == 404
            assert status_of(running, method, where) == 401
        with running.client(headers=yours) as client:
            reply = client.post(PATH, json={"input": "b", "previous_response_id": response["id"]})
        assert reply.status_code == 400 and reply.json()["error"]["code"] == "previous_response_not_found"
        made(running, yours, request_id="same"), made(running, mine, request_id="same")
        assert status_of(running, "DELETE", f"{PATH}/resp_same", yours) == 200
        assert status_of(running, "GET", f"{PATH}/resp_same", mine) == 200
        assert status_of(running, "GET", path, mine) == 200


def test_only_the_newest_are_kept(start_server):
    with start_server(options=ServerOptions(port=0, responses_store_size=2)) as running:
        old, middle, new = (made(running) for _ in range(3))
        found = [status_of(running, "GET", f"{PATH}/{each['id']}") for each in (old, middle, new)]
        assert found == [404, 200, 200]


def test_a_server_may_keep_nothing(start_server):
    with start_server(options=ServerOptions(port=0, responses_store_size=0)) as running:
        response = made(running, store=True)
        assert response["store"] is False and status_of(running, "GET", f"{PATH}/{response['id']}") == 404


def test_a_client_that_hangs_up_leaves_nothing(start_server):
    with start_server(sim=SimOptions(step_seconds=0.01)) as running:
        body = {"input": "a", "max_output_tokens": 1000, "stream": True}
        with running.client() as client, client.stream("POST", PATH, json=body) as reply:
            next(reply.iter_raw())
        running.wait(lambda: running.llm.num_open == 0 and running.app.num_exchanges == 0)
        assert len(running.app._responses.store) == 0


# -- the store -----------------------------------------------------------------------------------------------------


def stored(size):
    return Stored(b"x" * (size - 2), b"[]", 0)


def test_the_store_is_bounded_in_number_and_bytes():
    store = ResponseStore(10, max_bytes=100)
    for number in range(20):
        store.put("a", str(number), stored(20))
        assert len(store) <= 5 and store.num_bytes == 20 * len(store)
    assert [store.get("a", str(number)) is not None for number in range(20)] == [False] * 15 + [True] * 5
    store.put("a", "huge", stored(101))
    assert store.get("a", "huge") is None and len(store) == 5
    small = ResponseStore(3, max_bytes=10**9)
    for number in range(9):
        small.put("a", str(number), stored(10))
    assert len(small) == 3


def test_the_key_with_most_bytes_makes_room():
    store = ResponseStore(100, max_bytes=100)
    store.put("quiet", "1", stored(20))
    for number in range(50):
        store.put("loud", str(number), stored(20))
    assert store.get("quiet", "1") is not None and store.num_bytes == 100


def test_what_is_used_stays_and_what_is_put_again_counts_once():
    store = ResponseStore(2)
    store.put("a", "1", stored(10))
    store.put("a", "2", stored(10))
    store.put("a", "1", stored(30))
    assert store.num_bytes == 40
    assert store.get("a", "2") is not None
    store.put("a", "3", stored(10))
    assert store.get("a", "1") is None and store.get("a", "2") is not None
    assert store.remove("a", "2") and not store.remove("a", "2") and not store.remove("b", "3")
    store.remove("a", "3")
    assert len(store) == 0 and store.num_bytes == 0
