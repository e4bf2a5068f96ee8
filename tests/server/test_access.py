"""API keys, what is open to all, models, metrics, and the real `openai` client."""

from __future__ import annotations

import asyncio
import re

import openai
import pytest

from octavo import __version__
from octavo.config import ServerOptions
from octavo.server.auth import PUBLIC

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def guarded(start_server):
    options = ServerOptions(port=0, api_key=("first-key", "second-key"), served_model_name=("org/model", "short"))
    with start_server(options=options) as running:
        yield running


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Bearer", "Basic first-key", "first-key", "Bearer first-key2"]
)
def test_every_route_but_the_public_ones_needs_a_key(guarded, header):
    headers = {} if header is None else {"authorization": header}
    with guarded.client(headers=headers) as client:
        for path in guarded.app._routes:
            for method in ("GET", "POST", "DELETE"):
                reply = client.request(method, path, json={} if method == "POST" else None)
                assert (reply.status_code == 401) == (path not in PUBLIC), path
        for path in (
            "/version",
            "/openapi.json",
            "/nothing",
            "//live",
            "/live/",
            "/LIVE",
            "/v1/models/x",
            "/ready/../metrics",
            "/v1//models",
        ):
            reply = client.get(path)
            assert reply.status_code == 401, path
            assert reply.json()["error"]["type"] == "authentication_error"
            assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", ["first-key", "second-key"])
def test_any_of_the_keys_opens(guarded, key):
    with guarded.client(headers={"authorization": f"bearer {key}"}) as client:
        assert client.get("/metrics").status_code == 200
        assert client.post(CHAT, json={"messages": MESSAGES, "max_tokens": 2}).status_code == 200


def test_a_model_goes_by_its_served_names(guarded):
    with guarded.client(headers={"authorization": "Bearer first-key"}) as client:
        listed = client.get("/v1/models").json()
        assert listed["object"] == "list" and [card["id"] for card in listed["data"]] == ["org/model", "short"]
        card = client.get("/v1/models/org/model").json()
        assert card == listed["data"][0]
        assert card["object"] == "model" and card["owned_by"] == "octavo" and card["max_model_len"] == 4096
        assert client.post(COMPLETIONS, json={"model": "short", "prompt": "a"}).json()["model"] == "short"
        assert client.post(COMPLETIONS, json={"prompt": "a"}).json()["model"] == "org/model"
        assert client.post(COMPLETIONS, json={"model": "sim", "prompt": "a"}).status_code == 404


def test_the_version(server):
    assert server.get("/version").json() == {"version": __version__}


def test_metrics_are_well_formed_and_count(server):
    server.post(COMPLETIONS, prompt="count me", max_tokens=5, n=2)
    with pytest.raises(AssertionError):
        server.get("/made-up-route-of-a-client")
    text = server.get("/metrics").text
    names, samples = set(), {}
    for line in text.splitlines():
        if line.startswith("#"):
            names.add(line.split()[2])
            continue
        match = re.fullmatch(r"([a-z]+[:_][a-z0-9_]+)(?:\{(.*)\})? ([0-9.e+-]+)", line)
        assert match, line
        assert any(match[1] == name or match[1].startswith(name + "_") for name in names), line
        samples[match[1], match[2]] = float(match[3])
    model = 'model_name="sim"'
    assert samples["octavo:generation_tokens_total", model] == 10
    assert samples["vllm:generation_tokens_total", model + ',engine="0"'] == 10
    assert samples["octavo:request_success_total", model + ',finished_reason="length"'] == 2
    assert samples["octavo:time_to_first_token_seconds_count", model] == 1
    assert samples["octavo:request_generation_tokens_bucket", model + ',le="10"'] == 1
    assert samples["octavo:request_generation_tokens_bucket", model + ',le="5"'] == 0
    assert samples["octavo:ready", model] == 1
    assert samples["octavo:http_replies_total", 'route="other",status="404"'] == 1
    assert "made-up" not in text


def test_the_openai_client(guarded):
    with openai.OpenAI(base_url=guarded.url + "/v1", api_key="second-key", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["org/model", "short"]
        assert client.models.retrieve("org/model").id == "org/model"
        chat = client.chat.completions.create(model="short", messages=MESSAGES, max_tokens=8, logprobs=True, n=2)
        assert chat.choices[1].message.content == "user: hi" and chat.usage.completion_tokens == 16
        assert "".join(entry.token for entry in chat.choices[0].logprobs.content) == "user: hi" and chat._request_id
        chunks = list(
            client.chat.completions.create(
                model="short", messages=MESSAGES, max_tokens=8, stream=True, stream_options={"include_usage": True}
            )
        )
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "user: hi"
        assert chunks[-1].usage.completion_tokens == 8
        whole = client.completions.create(model="short", prompt=["ab", "cd"], max_tokens=3, echo=True, logprobs=1)
        assert [choice.text for choice in whole.choices] == ["ababa", "cdcdc"]
        events = client.completions.create(model="short", prompt="ab", max_tokens=3, stream=True)
        assert "".join(event.choices[0].text for event in events) == "aba"
        with pytest.raises(openai.NotFoundError) as missing:
            client.completions.create(model="other", prompt="a")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as bad:
            client.completions.create(model="short", prompt="a", temperature=9)
        assert bad.value.param == "temperature"
    with (
        openai.OpenAI(base_url=guarded.url + "/v1", api_key="no", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_the_async_openai_client(guarded):
    async def main():
        async with openai.AsyncOpenAI(base_url=guarded.url + "/v1", api_key="first-key") as client:

            async def stream(word):
                events = await client.chat.completions.create(
                    model="short", messages=[{"role": word, "content": ""}], max_tokens=len(word.encode()), stream=True
                )
                return "".join([event.choices[0].delta.content or "" async for event in events])

            async def whole(word):
                reply = await client.completions.create(model="short", prompt=word, max_tokens=len(word.encode()))
                return reply.choices[0].text

            words = [f"word-{number}-é" for number in range(12)]
            return words, await asyncio.gather(*map(stream, words)), await asyncio.gather(*map(whole, words))

    words, streamed, replied = asyncio.run(main())
    assert streamed == words
    assert replied == words
