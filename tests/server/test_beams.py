"""Beam search and best_of over HTTP. The simulated model likes the prompt's own tokens best, their successors next."""

from __future__ import annotations

import pytest

PATH = "/v1/completions"
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "abc"}]


def test_beams_come_back_best_first(server):
    reply = server.post(PATH, prompt="abc ", n=3, use_beam_search=True, max_tokens=4, logprobs=1, ignore_eos=True)
    choices = reply["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert choices[0]["text"] == "abc " and len({choice["text"] for choice in choices}) == 3
    sums = [sum(choice["logprobs"]["token_logprobs"]) for choice in choices]
    assert sums == pytest.approx([-2.0, -3.0, -3.0])
    assert reply["usage"]["completion_tokens"] == 12
    assert server.get("/ready").json()["status"] == "ready"


def test_a_stream_has_all_of_it_at_the_end(server):
    body = {"prompt": "abc ", "n": 3, "use_beam_search": True, "max_tokens": 5, "return_token_ids": True}
    whole = server.post(PATH, **body)
    events = server.stream(PATH, **body)
    for choice in whole["choices"]:
        parts = [c for e in events for c in e["choices"] if c["index"] == choice["index"]]
        texts = [part for part in parts if part["text"]]
        assert len(texts) == 1 and texts[0]["text"] == choice["text"]
        assert texts[0]["token_ids"] == choice["token_ids"]
        assert parts[-1]["finish_reason"] == "length"


def test_chat_takes_beams_too(server):
    reply = server.post(CHAT, messages=MESSAGES, n=2, use_beam_search=True, max_tokens=3, length_penalty=0.5)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1]
    assert reply["choices"][0]["message"]["content"] != reply["choices"][1]["message"]["content"]
    for early in (True, False, "never"):
        again = server.post(CHAT, messages=MESSAGES, n=2, use_beam_search=True, max_tokens=3, early_stopping=early)
        assert again["choices"][0]["message"] == reply["choices"][0]["message"]


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("temperature", 0.5, "unsupported_value"),
        ("stop", "x", "unsupported_value"),
        ("top_p", 0.5, "unsupported_value"),
        ("presence_penalty", 1, "unsupported_value"),
        ("best_of", 5, "unsupported_value"),
        ("length_penalty", 99, "invalid_value"),
        ("early_stopping", "sometimes", "invalid_value"),
        ("length_penalty", "x", "invalid_type"),
        ("n", 129, "invalid_value"),
    ],
)
def test_what_beams_cannot_take_is_refused(server, field, value, code):
    body = {"prompt": "abc", "use_beam_search": True, "n": 2, "max_tokens": 4, field: value}
    error = server.post(PATH, status=400, **body)["error"]
    assert (error["param"], error["code"]) == (field, code)
    assert server.post(PATH, prompt="abc ", max_tokens=3)["choices"][0]["text"] == "abc"


def test_what_the_engine_cannot_hold_is_refused_too(start_server):
    with start_server(max_num_seqs=4) as server:
        body = {"prompt": "abc", "use_beam_search": True, "n": 5, "max_tokens": 4}
        error = server.post(PATH, status=400, **body)["error"]
        assert (error["param"], error["code"]) == ("n", "invalid_value")
        assert len(server.post(PATH, **body | {"n": 4})["choices"]) == 4


def test_a_client_that_hangs_up_ends_the_search(start_server):
    from octavo.sim import SimOptions

    with start_server(sim=SimOptions(step_seconds=0.02)) as server:
        with server.client() as client:
            body = {"prompt": "abc", "use_beam_search": True, "n": 4, "max_tokens": 1000, "stream": True}
            with client.stream("POST", PATH, json=body):
                server.wait(lambda: server.llm.num_open == 1)
        server.wait(lambda: server.llm.num_open == 0)
        server.post(PATH, prompt="abc", max_tokens=2)
        server.wait(lambda: server.llm.stats.num_free_pages == server.llm.stats.num_pages, 3.0)


def test_best_of_gives_the_likeliest(server):
    """Every sample of the simulated model is as likely, so the first n come back; all of them are counted."""
    reply = server.post(PATH, prompt="abc ", n=2, best_of=5, max_tokens=4)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1]
    assert all(choice["text"] == "abc " and choice["logprobs"] is None for choice in reply["choices"])
    assert reply["usage"]["completion_tokens"] == 20
    asked = server.post(PATH, prompt=["abc ", "xy"], best_of=3, max_tokens=2, logprobs=2)
    assert [(choice["index"], choice["text"]) for choice in asked["choices"]] == [(0, "ab"), (1, "xy")]
    assert all(len(choice["logprobs"]["tokens"]) == 2 for choice in asked["choices"])


@pytest.mark.parametrize(("best_of", "extra"), [(1, {"n": 2}), (21, {}), (0, {}), (-1, {}), (4, {"stream": True})])
def test_best_of_has_bounds(server, best_of, extra):
    assert server.post(PATH, status=400, prompt="a", best_of=best_of, **extra)["error"]["param"] == "best_of"


def test_best_of_equal_to_n_changes_nothing(server):
    plain, same = (server.post(PATH, prompt="ab", n=2, max_tokens=3, **extra) for extra in ({}, {"best_of": 2}))
    assert plain["choices"] == same["choices"]


def test_the_likeliest_is_the_one_with_the_highest_logprob_a_token():
    from types import SimpleNamespace

    from octavo.server.protocol import CompletionBody
    from octavo.server.render import CompletionRendering

    values = [[-1.0, -2.0], [-1.4], [-0.1, -0.1, -3.9], []]
    samples = [
        SimpleNamespace(finish_reason="stop", logprobs=[SimpleNamespace(logprob=value) for value in each])
        for each in values
    ]
    request = SimpleNamespace(handle=1, samples=samples)
    envelope = {"id": "x", "created": 0, "model": "m", "system_fingerprint": ""}
    rendering = CompletionRendering(envelope, CompletionBody(prompt="a", n=3, best_of=4), [request], None)
    assert rendering.chosen(request) == [samples[2], samples[1], samples[0]]
