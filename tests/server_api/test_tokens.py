"""/tokenize, /detokenize and /tokenizer_info: the ids that the engine would get, however long the text is."""

from __future__ import annotations

import asyncio
import threading
import time

import httpx
import pytest

from octavo.config import ServerOptions
from octavo.frontend.off_loop import MAX_TEXTS
from octavo.server.tokens import MAX_CHARS, MAX_IDS
from tests.patience import BUSY
from tests.server.conftest import NO_TLS

TEXTS = ["", "ab", "naïve 🐢 text\n", "<|end|>", "a" * 300]
MESSAGES = [{"role": "system", "content": "Be <|end|> brief."}, {"role": "user", "content": "hi"}]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_come_back(server, text):
    reply = server.post("/tokenize", prompt=text)
    assert reply["count"] == len(reply["tokens"]) and reply["max_model_len"] == 4096 and reply["token_strs"] is None
    assert server.post("/detokenize", tokens=reply["tokens"]) == {"prompt": text}


@pytest.mark.parametrize("text", TEXTS[1:])
def test_ids_are_those_that_a_completion_gets(server, text):
    choice = server.post("/v1/completions", prompt=text, max_tokens=1, return_token_ids=True)["choices"][0]
    assert server.post("/tokenize", prompt=text)["tokens"] == choice["prompt_token_ids"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_generation_prompt": False, "continue_final_message": True},
        {"tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]},
    ],
)
def test_ids_are_those_that_a_chat_gets(server, options):
    reply = server.post("/v1/chat/completions", messages=MESSAGES, max_tokens=1, return_token_ids=True, **options)
    told = server.post("/tokenize", messages=MESSAGES, add_special_tokens=False, **options)
    assert told["tokens"] == reply["prompt_token_ids"] and told["count"] == reply["usage"]["prompt_tokens"]


def test_tokens_are_spelled_on_demand(server):
    reply = server.post("/tokenize", prompt="é <|end|>", return_token_strs=True)
    assert reply["token_strs"] == ["Ã", "©", "Ġ", "<|end|>"]


BAD = [
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
    ("/tokenize", {"prompt": ["a"]}, "prompt"),
    ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
    ("/tokenize", {"prompt": "a", "tools": []}, "tools"),
    ("/tokenize", {"messages": []}, "messages"),
    ("/tokenize", {"messages": MESSAGES, "add_special_tokens": True}, "add_special_tokens"),
    ("/tokenize", {"messages": MESSAGES, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ("/tokenize", {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ("/tokenize", {"messages": MESSAGES, "tools": [{"type": "web_search"}]}, "tools[0].type"),
    ("/tokenize", {"prompt": "a" * (MAX_CHARS + 1)}, "prompt"),
    ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": [-1]}, "tokens"),
    ("/detokenize", {"tokens": [320]}, "tokens"),
    ("/detokenize", {"tokens": [2**70]}, "tokens"),
    ("/detokenize", {"tokens": [1.5]}, "tokens"),
    ("/detokenize", {"tokens": "ab"}, "tokens"),
    ("/detokenize", {"tokens": [1] * (MAX_IDS + 1)}, "tokens"),
]


@pytest.mark.parametrize(("path", "body", "param"), BAD, ids=lambda value: str(value)[:40])
def test_bad_requests_are_named(server, path, body, param):
    assert server.post(path, 400, **body)["error"]["param"] == param


def test_an_unknown_model_is_404(server):
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
        assert server.post(path, 404, model="other", **body)["error"]["code"] == "model_not_found"


def test_the_facts_of_the_tokenizer_are_behind_a_flag(server, start_server):
    server.get("/tokenizer_info", 404)
    with start_server(options=ServerOptions(port=0, enable_tokenizer_info_endpoint=True)) as running:
        info = running.get("/tokenizer_info").json()
    assert (info["eos_token"], info["eos_token_id"], info["bos_token"]) == ("<|end|>", 256, None)
    assert info["vocab_size"] == 257 and info["model_max_length"] == 4096 and info["special_tokens"] == ["<|end|>"]
    assert "add_generation_prompt" in info["chat_template"]


def test_texts_beyond_the_context_are_counted(server):
    assert server.post("/tokenize", prompt="word " * 4000)["count"] == 20_000
    assert server.post("/tokenize", messages=[{"role": "user", "content": "x" * 9000}])["count"] == 9018


@pytest.fixture
def stuck(server, monkeypatch):
    """Long texts take until the event is set."""
    event = threading.Event()
    tokenizer = server.llm.frontend.tokenizer
    real = type(tokenizer).encode

    def encode(self, text, *options, **more):
        if len(text) > 4096:
            event.wait(20)
        return real(self, text, *options, **more)

    monkeypatch.setattr(type(tokenizer), "encode", encode)
    yield event
    event.set()


def test_long_texts_hold_nobody_up_and_few_may_wait(server, stuck):
    async def main():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, verify=NO_TLS, timeout=30, limits=limits) as client:

            async def ask():
                return (await client.post("/tokenize", json={"prompt": "x" * 5000})).status_code

            waiting = [asyncio.create_task(ask()) for _ in range(MAX_TEXTS + 3)]
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=10)
            begun = time.monotonic()
            short = await client.post("/tokenize", json={"prompt": "short"})
            answer = await client.post("/v1/completions", json={"prompt": "ab", "max_tokens": 2})
            taken = time.monotonic() - begun
            stuck.set()
            return {task.result() for task in done}, await asyncio.gather(*waiting), short, answer, taken

    first, statuses, short, answer, taken = asyncio.run(main())
    assert first == {503} and sorted(set(statuses)) == [200, 503] and statuses.count(503) == 3
    assert short.json()["count"] == 5 and answer.json()["choices"][0]["text"] == "ab" and taken < 1 * BUSY


def test_time_and_hang_ups_end_the_wait(server, stuck):
    with server.client(headers={"x-request-timeout": "0.2"}) as client:
        assert client.post("/tokenize", json={"prompt": "x" * 5000}).status_code == 504
    with server.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post("/tokenize", json={"prompt": "x" * 5000}, timeout=0.1)
    server.wait(lambda: server.llm.off_loop._num_texts == 0)
    stuck.set()
    assert server.post("/tokenize", prompt="x" * 5000)["count"] == 5000


def test_texts_are_not_logged(server, caplog):
    with caplog.at_level("DEBUG"):
        server.post("/tokenize", prompt="canary-77")
        server.post("/tokenize", 400, prompt="canary-77", tools=[])
    assert not [r for r in caplog.records if r.name.startswith(("octavo", "uvicorn")) and "canary" in r.getMessage()]
