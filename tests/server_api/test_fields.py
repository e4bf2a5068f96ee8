"""Every field that is taken acts, or is one of OpenAI's for its books; those that cannot act are refused by name."""

from __future__ import annotations

import json

import msgspec
import pytest

from octavo.errors import InvalidRequestError
from octavo.frontend.tokenizer import load_tokenizer
from octavo.server.protocol_fields import REFUSED, RefusedFields, banned_words
from octavo.weights.checkpoint import open_checkpoint

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
BODIES = {COMPLETIONS: {"prompt": "ab", "max_tokens": 4}, CHAT: {"messages": MESSAGES, "max_tokens": 4}}
BOOKS = {
    "user": "u-1",
    "safety_identifier": "s",
    "prompt_cache_key": "any text at all, é",
    "prompt_cache_retention": "24h",
    "metadata": {"a": "b"},
    "store": True,
    "verbosity": "low",
    "prediction": {"type": "content", "content": "hi"},
}


def text_of(reply):
    choice = reply["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


@pytest.mark.parametrize("path", BODIES)
def test_fields_of_openais_books_change_nothing(server, path):
    plain = server.post(path, **BODIES[path])
    assert "service_tier" not in plain
    reply = server.post(path, **BODIES[path], **BOOKS, service_tier="flex")
    assert text_of(reply) == text_of(plain) and reply["service_tier"] == "default"
    assert all(chunk["service_tier"] == "default" for chunk in server.stream(path, **BODIES[path], service_tier="auto"))


BAD = [
    ("user", "x" * 513),
    ("user", 5),
    ("metadata", {str(i): "x" for i in range(17)}),
    ("metadata", {"x": 5}),
    ("metadata", {"x" * 65: "x"}),
    ("service_tier", "gold"),
    ("verbosity", "loud"),
    ("request_id", "a b"),
    ("request_id", ""),
    ("request_id", "x" * 129),
    ("truncate_prompt_tokens", 0),
    ("truncate_prompt_tokens", -2),
    ("truncate_prompt_tokens", 4097),
    ("bad_words", ["two words"]),
    ("bad_words", [""]),
    ("bad_words", ["a"] * 129),
    ("stream_options", {"include_usage": True}),
]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: str(value)[:30])
def test_values_that_cannot_be_are_named(server, path, name, value):
    assert server.post(path, 400, **BODIES[path], **{name: value})["error"]["param"] == name


def test_the_refused_fields_are_those_with_an_advice():
    assert {field.name for field in msgspec.structs.fields(RefusedFields)} == set(REFUSED)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_act_is_refused_by_name_and_asking_for_nothing_is_not(server, path, name):
    for value in ("x", [1], {"a": 1}, True, 7):
        error = server.post(path, 400, **BODIES[path], **{name: value})["error"]
        assert (error["param"], error["code"]) == (name, "unsupported_value") and error["message"]
    for value in (None, False, [], {}, ""):
        server.post(path, 200, **BODIES[path], **{name: value})


@pytest.mark.parametrize("name", ["echo", "add_special_tokens"])
def test_what_only_completions_have_is_refused_by_chat(server, name):
    assert server.post(CHAT, 400, **BODIES[CHAT], **{name: True})["error"]["param"] == name
    server.post(CHAT, 200, **BODIES[CHAT], **{name: False})


# -- prompts -------------------------------------------------------------------------------------------------------


def test_a_truncated_prompt_keeps_its_end(server):
    reply = server.post(COMPLETIONS, prompt="abcdef", truncate_prompt_tokens=2, max_tokens=4, echo=True)
    assert text_of(reply) == "efefef" and reply["usage"]["prompt_tokens"] == 2
    ids = server.post("/tokenize", prompt="abcdef")["tokens"]
    reply = server.post(COMPLETIONS, prompt=[ids, ids], truncate_prompt_tokens=3, max_tokens=3, return_token_ids=True)
    assert [choice["prompt_token_ids"] for choice in reply["choices"]] == [ids[-3:]] * 2
    assert server.post(COMPLETIONS, prompt="ab", truncate_prompt_tokens=9, max_tokens=2)["usage"]["prompt_tokens"] == 2


def test_a_prompt_longer_than_the_context_can_be_made_to_fit(server):
    reply = server.post(COMPLETIONS, prompt="x" * 6000, truncate_prompt_tokens=-1, max_tokens=6)
    assert reply["usage"] == reply["usage"] | {"prompt_tokens": 4090, "completion_tokens": 6}
    messages = [{"role": "user", "content": "x" * 6000}]
    reply = server.post(CHAT, messages=messages, truncate_prompt_tokens=-1, max_tokens=6)
    assert reply["usage"]["prompt_tokens"] == 4090
    reply = server.post("/v1/embeddings", input="x" * 6000, truncate_prompt_tokens=10)
    assert reply["usage"]["prompt_tokens"] == 10
    assert server.post("/v1/embeddings", 400, input="x", truncate_prompt_tokens=0)["error"]["param"]


@pytest.fixture(scope="module")
def rich(start_server, tmp_path_factory):
    """A server whose template knows documents, effort and thinking."""
    template = (
        "{% for d in documents or [] %}[{{ d['text'] }}]{% endfor %}"
        "{{ reasoning_effort | default('-') }} {{ enable_thinking | default(true) }}|"
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    file = tmp_path_factory.mktemp("rich") / "template.jinja"
    file.write_text(template)
    with start_server(chat_template=str(file)) as running:
        yield running


def prompt_of(server, **body):
    ids = server.post(CHAT, messages=MESSAGES, max_tokens=1, return_token_ids=True, **body)["prompt_token_ids"]
    return server.post("/detokenize", tokens=ids)["prompt"]


def test_documents_go_to_templates_that_know_them(rich, server):
    assert prompt_of(rich, documents=[{"text": "one"}, {"text": "two"}]) == "[one][two]- True|hi"
    ids = rich.post("/tokenize", prompt="<|end|>")["tokens"]
    told = rich.post(CHAT, messages=MESSAGES, max_tokens=1, documents=[{"text": "<|end|>"}], return_token_ids=True)
    assert ids[0] not in told["prompt_token_ids"]  # what a document spells is text
    assert server.post(CHAT, 400, **BODIES[CHAT], documents=[{"text": "x"}])["error"]["param"] == "documents"
    for bad in ({"documents": "x"}, {"documents": ["x"]}, {"chat_template_kwargs": {"documents": []}}):
        rich.post(CHAT, 400, **BODIES[CHAT], **bad)
    rich.post(CHAT, 400, **BODIES[CHAT], documents=[{"text": "x" * 200_000}])


def test_reasoning_effort_goes_to_templates_that_know_it(rich, server):
    assert prompt_of(rich, reasoning_effort="high") == "high True|hi"
    assert prompt_of(rich, reasoning_effort="none") == "none False|hi"
    assert prompt_of(rich, reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "mine"}) == "mine True|hi"
    server.post(CHAT, 200, **BODIES[CHAT], reasoning_effort="xhigh")
    server.post(CHAT, 400, **BODIES[CHAT], reasoning_effort="utmost")


# -- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", BODIES)
def test_the_reply_is_called_as_the_request_says(server, path):
    reply = server.post(path, **BODIES[path], request_id="mine.1:x")
    assert reply["id"] == {COMPLETIONS: "cmpl-mine.1:x", CHAT: "chatcmpl-mine.1:x"}[path]
    server.post(path, **BODIES[path], request_id="mine.1:x")  # it has ended, so the id is free


def test_an_id_that_is_in_use_is_refused(start_server):
    from octavo.sim import SimOptions

    with start_server(sim=SimOptions(step_seconds=0.02)) as running, running.client() as client:
        body = {"prompt": "ab", "max_tokens": 100, "request_id": "one", "stream": True}
        with client.stream("POST", COMPLETIONS, json=body) as reply:
            lines = reply.iter_lines()
            next(lines)
            error = running.post(COMPLETIONS, 400, prompt="ab", request_id="one")["error"]
        assert error["param"] == "request_id"


@pytest.mark.model
def test_bad_words_are_single_tokens_in_both_their_forms(smollm2_gguf):
    tokenizer = load_tokenizer(open_checkpoint(smollm2_gguf))
    ids = banned_words(["cat", " dog "], tokenizer)
    assert [tokenizer.decode([each]) for each in ids] == ["cat", " cat", "dog", " dog"]
    for word in ("xylophonist", "", " ", "two words"):
        with pytest.raises(InvalidRequestError, match="several tokens"):
            banned_words([word], tokenizer)


@pytest.mark.parametrize("path", BODIES)
def test_bad_words_reach_the_engine_as_banned_ids(server, path, monkeypatch):
    sent = []
    real = type(server.llm).submit
    monkeypatch.setattr(type(server.llm), "submit", lambda *a, **k: sent.extend(a[1]) or real(*a, **k))
    monkeypatch.setattr("octavo.server.generation.banned_words", lambda words, _: tuple(map(len, words)))
    server.post(path, **BODIES[path], bad_words=["ab", "c"], banned_token_ids=[9])
    assert sent[0].params.banned_token_ids == (9, 2, 1)


@pytest.mark.parametrize("path", BODIES)
def test_the_counts_so_far_in_every_chunk(server, path):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = server.stream(path, **BODIES[path], n=2, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 8 and len(set(counts)) > 2
    assert all(chunk["usage"]["prompt_tokens"] == chunks[-1]["usage"]["prompt_tokens"] for chunk in chunks)
    assert chunks[-1]["choices"] == []
    alone = server.post(path, 400, **BODIES[path], stream=True, stream_options={"continuous_usage_stats": True})
    assert alone["error"]["param"] == "stream_options"


@pytest.mark.parametrize("path", BODIES)
def test_filled_up_chunks_tell_the_same_and_are_equally_long(server, path):
    options = {"include_obfuscation": True}
    body = BODIES[path] | {"max_tokens": 12, "messages": [{"role": "user", "content": "é🐢 a"}], "prompt": "é🐢 a"}
    lines = [each for each in server.raw_stream(path, **body, stream_options=options).split(b"\n\n") if each][:-1]
    assert len(lines) > 6 and {len(each) % 64 for each in lines} <= {len(lines[1]) % 64}
    texts = []
    for chunk in (json.loads(each[6:]) for each in lines):
        choice = chunk["choices"][0]
        texts.append(choice["text"] if "text" in choice else choice["delta"].get("content") or "")
    assert "".join(texts) == text_of(server.post(path, **body))


def test_tokens_can_be_named_by_their_ids(server):
    a, b = server.post("/tokenize", prompt="ab")["tokens"]
    wanted = {"prompt": "ab", "max_tokens": 2, "logprobs": 1, "echo": True, "return_tokens_as_token_ids": True}
    told = server.post(COMPLETIONS, **wanted)["choices"][0]["logprobs"]
    assert told["tokens"] == [f"token_id:{each}" for each in (a, b, a, b)]
    assert told["text_offset"] == [0, 1, 2, 3] and f"token_id:{a}" in told["top_logprobs"][2]
    chat = {**BODIES[CHAT], "logprobs": True, "top_logprobs": 1, "return_tokens_as_token_ids": True}
    entries = server.post(CHAT, **chat)["choices"][0]["logprobs"]["content"]
    assert all(each["token"].startswith("token_id:") and each["bytes"] for each in entries)


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_forms_of_echo_and_logprobs(server, echo, max_tokens):
    if not echo and not max_tokens:
        assert server.post(COMPLETIONS, 400, prompt="ab", max_tokens=0)["error"]["param"] == "max_tokens"
        return
    choice = server.post(COMPLETIONS, prompt="ab", max_tokens=max_tokens, echo=echo, logprobs=2)["choices"][0]
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == choice["text"] == "ab" * echo + ("ab" * 3)[:max_tokens]
    assert all(len(values) == len(told["tokens"]) for values in told.values())
    assert (told["token_logprobs"][0] is None) == echo


@pytest.mark.parametrize("path", BODIES)
def test_prompt_logprobs_are_for_whole_replies(server, path):
    body = BODIES[path] | {"prompt_logprobs": 1}
    reply = server.post(path, **body)
    told = reply if path == CHAT else reply["choices"][0]
    assert told["prompt_logprobs"][0] is None and len(told["prompt_logprobs"]) == reply["usage"]["prompt_tokens"]
    assert server.post(path, 400, **body, stream=True)["error"]["param"] == "prompt_logprobs"


def test_a_stream_of_completions_tells_the_ids_of_each_prompt_once(server):
    ids = [server.post("/tokenize", prompt=text)["tokens"] for text in ("ab", "cde")]
    chunks = server.stream(COMPLETIONS, prompt=["ab", "cde"], n=2, max_tokens=3, return_token_ids=True)
    told = [(c["choices"][0]["index"], c["choices"][0].get("prompt_token_ids")) for c in chunks]
    assert sorted(each for each in told if each[1]) == [(0, ids[0]), (1, ids[0]), (2, ids[1]), (3, ids[1])]


def test_older_names_of_structured_outputs(start_server):
    from octavo.sim import SimOptions

    with start_server(sim=SimOptions(scripted=True)) as running:
        running.post(COMPLETIONS, 200, prompt="{}", guided_json_object=True, max_tokens=2)
        running.post(COMPLETIONS, 200, prompt="{}", guided_json_object=False, max_tokens=2)
        running.post(COMPLETIONS, 200, prompt="1", guided_json={"type": "integer"}, guided_whitespace_pattern="")
        error = running.post(COMPLETIONS, 400, prompt="1", guided_whitespace_pattern="[ ]*")["error"]
    assert error["param"]
