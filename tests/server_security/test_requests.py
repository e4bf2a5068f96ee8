"""Requests that have killed other engines, through every entrance: each is a clear refusal, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import itertools
import json
import logging
import threading
import time

import httpx
import msgspec
import psutil
import pytest

from octavo.frontend import inputs
from octavo.kv import page_digests, root_digest
from octavo.request import SamplingParams
from octavo.server.protocol import ChatBody
from octavo.sim import SimOptions
from tests.patience import BUSY
from tests.server.conftest import NO_TLS
from tests.server_security.entrances import ENTRANCES, completions

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
VOCAB = 320


@pytest.fixture(params=ENTRANCES, ids=lambda entrance: entrance.name)
def entrance(request):
    return request.param


@pytest.fixture(autouse=True)
def unharmed(server):
    """After each test the server is ready, nothing runs, all pages are free, and a request gets its text."""
    yield
    assert server.get("/ready").status_code == 200
    assert completions(server, "well?", max_tokens=5).text == "well?"
    server.wait(lambda: server.llm.num_open == 0 and server.llm.stats.num_running == 0)
    server.wait(lambda: server.llm.stats.num_free_pages == server.llm.stats.num_pages)


def skip_without(entrance, names):
    if entrance.lacks.intersection(names):
        pytest.skip("the entrance has no such parameter")


def refused(entrance, server, prompt, *codes, **params):
    """The outcome, which must be a refusal with a 400 at once."""
    skip_without(entrance, params)
    start = time.monotonic()
    outcome = entrance.ask(server, prompt, **params)
    assert outcome.status == 400, (params, outcome)
    assert time.monotonic() - start < 1.0 * BUSY
    assert not codes or outcome.code in codes, outcome
    return outcome


# -- parameters ----------------------------------------------------------------------------------------------------


@pytest.mark.security("A12")
def test_numbers_of_answers_are_bounded(server, entrance):
    before = psutil.Process().memory_info().rss
    for n in (10**9, 129, 2**63, -1):
        assert refused(entrance, server, "x", n=n).param == "n"
    if entrance.name == "completions":
        for n, best_of in ((-1, None), (-1, 3), (0, 3), (1, 10**9), (1, -1)):
            refused(entrance, server, "x", n=n, best_of=best_of)
    assert psutil.Process().memory_info().rss - before < 32 << 20


@pytest.mark.security("A13")
@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
def test_numbers_of_logprobs_are_bounded(server, entrance, name):
    for value in (10**6, 2**31, -2):
        refused(entrance, server, "x", **{name: value})


@pytest.mark.security("A13", "A14")
@pytest.mark.parametrize("name", ["stop_token_ids", "banned_token_ids", "allowed_token_ids", "logit_bias"])
def test_token_ids_are_of_the_vocabulary_and_not_too_many(server, entrance, name):
    others = server.llm.stats.generation_tokens
    for bad in (-1, VOCAB, VOCAB + 1, 2**31, 2**63, 2**70):
        value = {str(bad) if entrance.is_http else bad: 1.0} if name == "logit_bias" else [bad]
        refused(entrance, server, "x", **{name: value})
    many = list(range(50_000))
    value = {str(i) if entrance.is_http else i: 1.0 for i in many} if name == "logit_bias" else many
    refused(entrance, server, "x", **{name: value})
    assert server.llm.stats.generation_tokens == others


@pytest.mark.security("A14")
def test_bad_ids_leave_the_text_of_those_who_run_beside_as_it_is(start_server, entrance):
    with start_server(sim=SimOptions(step_seconds=0.005)) as running:
        future = asyncio.run_coroutine_threadsafe(collect(running.llm, "beside|", 100), running.loop)
        running.wait(lambda: running.llm.stats.num_running == 1)
        for bad in (-1, VOCAB, 2**31):
            refused(entrance, running, "x", stop_token_ids=[bad])
        assert future.result(20) == ("beside|" * 50)[:100]


async def collect(llm, prompt, max_tokens):
    text = ""
    async for output in llm.generate(prompt, SamplingParams(max_tokens=max_tokens)):
        text = output.outputs[0].text
    return text


@pytest.mark.security("A14")
@pytest.mark.parametrize(
    "stop",
    [["a"] * 17, ["x" * 1025], ["x" * 1000] * 5, [""], [""] * 3, ["\x00" * 2000]],
    ids=lambda stop: str(len(stop)),
)
def test_stop_strings_are_bounded(server, entrance, stop):
    refused(entrance, server, "x", stop=stop)


@pytest.mark.security("A15")
@pytest.mark.parametrize("ids", [[-1], [VOCAB], [2**31], [2**70], [1.5], [True], ["a"], [None], [[1]]])
def test_prompt_ids_are_of_the_vocabulary(server, entrance, ids):
    if not entrance.takes_ids:
        pytest.skip("the entrance takes text only")
    refused(entrance, server, [1, 2, *ids])


@pytest.mark.security("A15")
@pytest.mark.parametrize("text", ["<|image|>", "<|end|>" * 50, "<image_soft_token>", "\x00", "\ufffe\ud7ff", "<|end|"])
def test_text_that_spells_control_tokens_harms_nobody(server, entrance, text):
    assert entrance.ask(server, text, max_tokens=20).status == 200


@pytest.mark.security("A16")
@pytest.mark.parametrize(
    "name", ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"]
)
def test_numbers_are_finite(server, entrance, name):
    for value in (float("nan"), float("inf"), float("-inf"), 1e308):
        refused(entrance, server, "x", **{name: value})


@pytest.mark.security("A16")
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e400", b"-1e400", b"1" + b"0" * 5000])
def test_numbers_that_json_cannot_say_are_refused(server, path, number):
    body = b'{"prompt": "x", "messages": [{"role": "user", "content": "x"}], "temperature": %s}' % number
    with server.client() as client:
        reply = client.post(path, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400


@pytest.mark.security("A17", "A26")
def test_lengths_that_contradict_each_other(server, entrance):
    refused(entrance, server, "x", min_tokens=5, max_tokens=4)
    refused(entrance, server, "x", min_tokens=4096, max_tokens=None)
    refused(entrance, server, "x", min_tokens=2**31, max_tokens=None)
    refused(entrance, server, "x", max_tokens=0 if entrance.name != "completions" else -1)
    refused(entrance, server, "x", max_tokens=4096)
    refused(entrance, server, "x" * 5000, max_tokens=1)
    refused(entrance, server, "x", min_tokens=3, allowed_token_ids=[256])


@pytest.mark.security("A18")
def test_extremes_of_all_penalties_together(server, entrance):
    values = {
        "repetition_penalty": (0.01, 100.0),
        "presence_penalty": (-2.0, 2.0),
        "frequency_penalty": (-2.0, 2.0),
        "temperature": (0.0, 2.0),
        "top_k": (-1, 1),
        "min_p": (0.0, 1.0),
    }
    skip_without(entrance, values)
    for chosen in itertools.product(*values.values()):
        outcome = entrance.ask(server, "ab", **dict(zip(values, chosen, strict=True)))
        assert outcome.status == 200 and outcome.text


@pytest.mark.security("A19")
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    "constraint",
    [
        {"structured_outputs": {"regex": "(a+)+b" * 500}},
        {"structured_outputs": {"regex": "((((a{1,1000}){1,1000}){1,1000}){1,1000})"}},
        {"structured_outputs": {"grammar": "root ::= " + "(" * 5000}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["e"] * 300_000}}}},
    ],
    ids=["regex", "repeats", "grammar", "enum"],
)
def test_grammars_that_explode_are_refused_within_seconds_and_streams_go_on(start_server, path, constraint):
    if not {*constraint} <= {field.name for field in msgspec.structs.fields(ChatBody)}:
        pytest.skip("this version has no structured outputs")
    with start_server(sim=SimOptions(step_seconds=0.01)) as running:
        future = asyncio.run_coroutine_threadsafe(collect(running.llm, "beside|", 150), running.loop)
        running.wait(lambda: running.llm.stats.num_running == 1)
        start = time.monotonic()
        body = {"prompt": "x", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4, **constraint}
        with running.client() as client:
            reply = client.post(path, json=body)
        assert reply.status_code in (400, 501) and time.monotonic() - start < 8 * BUSY, reply.text
        assert future.result(20) == ("beside|" * 30)[:150]


@pytest.mark.security("A21")
def test_template_options_cannot_replace_what_the_server_sets(server):
    with server.client() as client:
        for name in ("messages", "tokenize", "tools", "chat_template", "add_generation_prompt", "raise_exception"):
            body = {"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {name: "x"}}
            reply = client.post(CHAT, json=body)
            assert reply.status_code == 400, name


@pytest.mark.security("A21")
def test_a_template_in_a_request_is_not_rendered(server):
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 20}
    with server.client() as client:
        reply = client.post(CHAT, json={**body, "chat_template": "{{ 7 * 7 }}"})
    assert reply.status_code == 400 or "49" not in reply.json()["choices"][0]["message"]["content"]


@pytest.mark.security("A22")
@pytest.mark.parametrize("salt", ["a b", "x" * 129, "é", "../..", "a\x00b", "tcp://10.0.0.1:1", "{}", "\n"])
def test_salts_are_plain(server, entrance, salt):
    assert refused(entrance, server, "x", cache_salt=salt).param == "cache_salt"


@pytest.mark.security("A22")
@pytest.mark.parametrize("given", [b"tcp://10.0.0.1:5555", b"x" * 129, b"\xff\xfe", b"a b", b"{{7*7}}", b"../x"])
def test_request_ids_that_are_not_plain_are_replaced_and_nobody_is_called(server, given):
    with server.client() as client:
        reply = client.post(COMPLETIONS, json={"prompt": "x", "max_tokens": 1}, headers={b"x-request-id": given})
    assert reply.status_code == 200 and reply.headers["x-request-id"].encode() != given


@pytest.mark.security("A22")
def test_priorities_are_bounded(server, entrance):
    for value in (2**31, -(2**31) - 1, 2**70):
        refused(entrance, server, "x", priority=value)


# -- what there is not ---------------------------------------------------------------------------------------------


@pytest.fixture
def canary_url():
    """A web server that tells whether anybody came."""
    hits = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_address[1]}/canary", hits
        web.shutdown()


@pytest.mark.security("A8", "A25", "A27", "A28", "A38")
def test_media_is_refused_and_nothing_is_fetched_or_opened(server, canary_url, tmp_path):
    url, hits = canary_url
    (tmp_path / "secret").write_text("canary-in-a-file")
    bomb = "data:image/png;base64," + "A" * 3_000_000
    parts = [
        {"type": kind, kind: {"url": where}}
        for kind in ("image_url", "video_url", "audio_url")
        for where in (
            url,
            url.replace("127.0.0.1", "0x7f.1"),
            f"file://{tmp_path}/secret",
            bomb,
            "http://allowed\\@" + url[7:],
        )
    ]
    parts += [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "opus"}}]
    with server.client() as client:
        for part in parts:
            body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]}
            reply = client.post(CHAT, json=body)
            assert reply.status_code == 400, part
            assert "canary-in-a-file" not in reply.text and len(reply.content) < 2000
    assert hits == []


@pytest.mark.security("A3", "A35")
@pytest.mark.parametrize(
    "field",
    [
        {"prompt_embeds": "gASVKAAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOU"},
        {"kv_transfer_params": {"remote_host": "10.0.0.1", "remote_block_ids": [1, 2]}},
        {"mm_processor_kwargs": {"x": 1}},
        {"logits_processors": ["os.system"]},
        {"custom_logit_processor": "gASVKAAAAAAAAAA="},
        {"lora_path": "/etc/passwd"},
    ],
)
def test_fields_that_reach_into_other_engines_do_nothing_here(server, field):
    with server.client() as client:
        plain = client.post(COMPLETIONS, json={"prompt": "ab", "max_tokens": 4}).json()["choices"]
        reply = client.post(COMPLETIONS, json={"prompt": "ab", "max_tokens": 4, **field})
        assert reply.status_code == 400 or reply.json()["choices"] == plain
        alone = client.post(COMPLETIONS, json={"max_tokens": 4, **field})
        assert alone.status_code == 400


@pytest.mark.security("A2", "A29", "A35")
@pytest.mark.parametrize(
    "path",
    [
        "/update_weights_from_tensor", "/update_weights", "/load_lora_adapter", "/v1/load_lora_adapter", "/invocations",
        "/load_lora_adapter_from_tensors", "/route", "/inference/v1/generate", "/pause", "/collective_rpc", "/generate",
        "/start_profile", "/reset_prefix_cache", "/sleep", "/v1/unload_lora_adapter", "/flush_cache",
    ],
)  # fmt: skip
def test_there_is_no_way_to_change_the_engine_from_outside(server, path):
    with server.client() as client:
        for method in ("GET", "POST", "PUT", "DELETE"):
            assert client.request(method, path).status_code == 404


# -- others' text, others' cache -----------------------------------------------------------------------------------


@pytest.mark.security("A34")
def test_in_a_storm_with_aborts_each_gets_its_own_text(start_server):
    """A pool so small that sequences are preempted, and every third request hangs up midway."""
    with start_server(sim=SimOptions(step_seconds=0.002, num_pages=60), max_num_seqs=16) as running:

        async def main():
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(base_url=running.url, verify=NO_TLS, timeout=60, limits=limits) as client:

                async def ask(number):
                    prompt = f"{number:03}:{'shared beginning, ' * (number % 4)}|"
                    max_tokens = 30 + number * 7 % 60
                    body = {"prompt": prompt, "max_tokens": max_tokens}
                    post = client.post(COMPLETIONS, json=body, timeout=0.05 if number % 3 == 0 else 60)
                    try:
                        reply = await post
                    except httpx.TimeoutException:
                        return True
                    return reply.json()["choices"][0]["text"] == (prompt * 40)[:max_tokens]

                return await asyncio.gather(*map(ask, range(64)))

        assert all(asyncio.run(main()))
        assert running.llm.stats.num_preemptions > 0
        running.wait(lambda: running.llm.num_open == 0 and running.llm.stats.num_running == 0)
        running.wait(lambda: running.llm.stats.num_free_pages == running.llm.stats.num_pages)


@pytest.mark.security("A33")
def test_names_of_cached_pages_cover_all_that_must_be_equal():
    import numpy as np

    parts = ["", "a", "ab", "b", "abc", "\x00", "a\x00"]
    roots = {root_digest(*three) for three in itertools.product(parts, repeat=3)}
    assert len(roots) == len(parts) ** 3
    assert root_digest("a", "b", "c") == root_digest("a", "b", "c") and all(len(root) == 32 for root in roots)
    one, other = np.arange(16, dtype=np.int32), np.arange(16, dtype=np.int32)[::-1].copy()
    chain = page_digests(root_digest("", "", ""), one, 4)
    assert len(set(chain)) == 4 and chain != page_digests(root_digest("", "", ""), other, 4)
    assert chain != page_digests(root_digest("", "", "x"), one, 4)


@pytest.mark.security("A39")
def test_each_entrance_asks_the_one_validator_once(server, entrance, monkeypatch):
    skip_without(entrance, {"cache_salt"})  # one that reaches no engine
    asked = []
    real = inputs.validate_params

    def validate(*arguments, **options):
        asked.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(inputs, "validate_params", validate)
    assert entrance.ask(server, "x").status == 200
    assert len(asked) == 1


# -- what is told --------------------------------------------------------------------------------------------------


@pytest.mark.security("A37", "A8")
def test_neither_prompts_nor_keys_are_logged_and_errors_tell_nothing_of_inside(server, entrance, caplog):
    """Through a success, a refusal and a failure, with every logger at its most talkative."""
    skip_without(entrance, {"cache_salt"})  # tests/server_api/test_tokens.py has those that reach no engine
    canary = "canary-5c0ffee"
    with contextlib.ExitStack() as stack:
        for logger in (None, "octavo", "octavo.server", "octavo.engine", "uvicorn", "uvicorn.error", "asyncio"):
            stack.enter_context(caplog.at_level(logging.DEBUG, logger))
        headers = {"authorization": f"Bearer {canary}"}
        outcomes = [
            entrance.ask(server, f"{canary} " * 3, headers=headers),
            entrance.ask(server, canary, headers=headers, cache_salt=" "),
            entrance.ask(server, canary * 1000, headers=headers),
        ]
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert not [record for record in ours if canary in record.getMessage()]
    for outcome in outcomes[1:]:
        assert outcome.status == 400
        for word in (canary, "Traceback", "0x", ".py", "/work", "octavo."):
            assert word not in outcome.message


@pytest.mark.security("A37", "A8")
def test_a_fault_of_ours_is_not_shown(server, monkeypatch, caplog):
    def broken(*_, **__):
        raise ValueError("a secret of the inside at 0x7f00, /etc/octavo")

    monkeypatch.setattr(inputs, "validate_params", broken)
    with server.client() as client:
        reply = client.post(COMPLETIONS, json={"prompt": "a canary-prompt"})
    monkeypatch.undo()
    assert reply.status_code == 500 and reply.json()["error"]["type"] == "server_error"
    assert "secret" not in reply.text and "0x7f00" not in reply.text
    assert "canary-prompt" not in caplog.text and reply.headers["x-request-id"] in caplog.text


@pytest.mark.security("A24")
def test_clients_choose_no_label(server):
    def series():
        return len([line for line in server.get("/metrics").text.splitlines() if not line.startswith("#")])

    def noise(first):
        with server.client() as client:
            for number in range(first, first + 100):
                client.request(f"METHOD{number}", "/v1/models")
                client.get(f"/path-{number}")
                client.post(COMPLETIONS, json={"prompt": "a", "model": f"model-{number}"})
                client.get(f"/v1/models/{number}", headers={"user-agent": f"agent-{number}"})

    noise(0)
    series()  # it counts itself
    before = series()
    noise(1000)
    assert series() == before
    assert json.dumps(server.get("/metrics").text).count("model-") == 0
