"""POST /v1/completions: the simulated engine answers with the prompt, over and over, a byte a token."""

from __future__ import annotations

import pytest

from tests.server.conftest import joined

PATH = "/v1/completions"


def text_of(events, index=0):
    return "".join(choice["text"] for event in events for choice in event["choices"] if choice["index"] == index)


def test_a_text_is_completed(server):
    reply = server.post(PATH, model="sim", prompt="abc ", max_tokens=6)
    assert reply["object"] == "text_completion" and reply["id"].startswith("cmpl-") and reply["model"] == "sim"
    (choice,) = reply["choices"]
    assert choice["text"] == "abc ab" and choice["index"] == 0 and choice["logprobs"] is None
    assert choice["finish_reason"] == "length" and choice["stop_reason"] is None
    assert reply["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 6,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert reply["system_fingerprint"].startswith("octavo-")


def test_sixteen_tokens_are_the_default(server):
    assert server.post(PATH, prompt="x")["usage"]["completion_tokens"] == 16


def test_token_ids_work_like_their_text(server):
    ids = server.llm.frontend.tokenizer.encode("abc ")
    assert server.post(PATH, prompt=ids, max_tokens=6)["choices"][0]["text"] == "abc ab"


def test_choices_of_several_prompts_are_numbered_through(server):
    reply = server.post(PATH, prompt=["ab", "cde"], n=2, max_tokens=3)
    assert [(c["index"], c["text"]) for c in reply["choices"]] == [(0, "aba"), (1, "aba"), (2, "cde"), (3, "cde")]
    assert reply["usage"]["prompt_tokens"] == 5 and reply["usage"]["completion_tokens"] == 12
    ids = [server.llm.frontend.tokenizer.encode(text) for text in ("ab", "cde")]
    by_ids = server.post(PATH, prompt=ids, n=2, max_tokens=3)
    assert [c["text"] for c in by_ids["choices"]] == [c["text"] for c in reply["choices"]]


def test_a_stream_says_the_same_as_the_whole(server):
    body = {"prompt": ["grün ", "日本語。"], "n": 2, "max_tokens": 11, "stop": ["rün g"], "stream_options": None}
    whole = server.post(PATH, **body)
    events = server.stream(PATH, **{**body, "stream_options": {"include_usage": True}})
    for choice in whole["choices"]:
        assert text_of(events, choice["index"]) == choice["text"]
        ends = [c for e in events for c in e["choices"] if c["index"] == choice["index"] and c["finish_reason"]]
        assert [(e["finish_reason"], e["stop_reason"]) for e in ends] == [
            (choice["finish_reason"], choice["stop_reason"])
        ]
    usage = events[-1]["usage"]
    assert events[-1]["choices"] == []
    assert usage["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_every_chunk_has_the_same_envelope_and_no_text_glued_to_the_end(server):
    events = server.stream(PATH, prompt="abc", max_tokens=5)
    assert len({(e["id"], e["object"], e["created"], e["model"], e["system_fingerprint"]) for e in events}) == 1
    assert all("usage" not in e for e in events)
    reasons = [e["choices"][0]["finish_reason"] for e in events]
    assert reasons[:-1] == [None] * (len(events) - 1) and reasons[-1] == "length"
    assert events[-1]["choices"][0]["text"] == ""


def test_characters_are_never_split(server):
    events = server.stream(PATH, prompt="é日🙂", max_tokens=18)
    assert text_of(events) == "é日🙂é日🙂"
    assert all("\ufffd" not in c["text"] for e in events for c in e["choices"])


def test_half_a_character_at_the_end_is_marked_not_lost(server):
    assert server.post(PATH, prompt="🙂", max_tokens=6)["choices"][0]["text"] == "🙂\ufffd"


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_is_not_leaked(server, include):
    body = {"prompt": "hello world", "max_tokens": 40, "stop": ["o wor"], "include_stop_str_in_output": include}
    choice = server.post(PATH, **body)["choices"][0]
    assert choice["text"] == ("hello wor" if include else "hell")
    assert choice["finish_reason"] == "stop" and choice["stop_reason"] == "o wor"
    assert text_of(server.stream(PATH, **body)) == choice["text"]
    server.wait(lambda: server.llm.stats.num_running == 0)


def test_a_stop_id_ends_the_answer(server):
    stop_id = server.llm.frontend.tokenizer.encode("d")[0]
    choice = server.post(PATH, prompt="abcd", max_tokens=9, stop_token_ids=[stop_id])["choices"][0]
    assert choice["text"] == "abc" and choice["finish_reason"] == "stop" and choice["stop_reason"] == stop_id
    later = server.post(PATH, prompt="abcd", max_tokens=9, stop_token_ids=[stop_id], min_tokens=5)["choices"][0]
    assert later["text"] == "abcdabc"


def test_the_end_token_ends_unless_ignored(server):
    eos = server.llm.frontend.tokenizer.eos_token_ids[0]
    prompt = [*server.llm.frontend.tokenizer.encode("ab"), eos]
    reply = server.post(PATH, prompt=prompt, max_tokens=8)
    assert reply["choices"][0]["text"] == "ab" and reply["choices"][0]["stop_reason"] is None
    reply = server.post(PATH, prompt=prompt, max_tokens=8, ignore_eos=True)
    assert reply["choices"][0]["text"] == "ababab" and reply["choices"][0]["finish_reason"] == "length"
    shown = server.post(PATH, prompt=prompt, max_tokens=4, ignore_eos=True, skip_special_tokens=False)
    assert shown["choices"][0]["text"] == "ab<|end|>a"


def test_logprobs_have_the_older_shape(server):
    logprobs = server.post(PATH, prompt="ab", max_tokens=3, logprobs=2)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "b", "a"] and logprobs["text_offset"] == [0, 1, 2]
    assert logprobs["token_logprobs"] == [-0.5] * 3
    assert all(
        len(top) == 2 and top[token] == -0.5
        for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True)
    )
    events = server.stream(PATH, prompt="ab", max_tokens=3, logprobs=2)
    parts = [c["logprobs"] for e in events for c in e["choices"] if c["logprobs"]]
    assert {key: joined(part[key] for part in parts) for key in logprobs} == logprobs


def test_bytes_that_are_no_characters_have_names_of_their_own(server):
    logprobs = server.post(PATH, prompt="é", max_tokens=2, logprobs=0)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["bytes:\\xc3", "bytes:\\xa9"]


def test_echo_brings_the_prompt_and_its_logprobs(server):
    body = {"prompt": ["abc", "xy"], "max_tokens": 2, "echo": True, "logprobs": 1, "n": 2}
    reply = server.post(PATH, **body)
    assert [c["text"] for c in reply["choices"]] == ["abcab", "abcab", "xyxy", "xyxy"]
    logprobs = reply["choices"][0]["logprobs"]
    assert logprobs["tokens"] == list("abcab") and logprobs["text_offset"] == [0, 1, 2, 3, 4]
    assert logprobs["token_logprobs"] == [None, -0.5, -0.5, -0.5, -0.5] and logprobs["top_logprobs"][0] is None
    events = server.stream(PATH, **body)
    for choice in reply["choices"]:
        assert text_of(events, choice["index"]) == choice["text"]
        parts = [c["logprobs"] for e in events for c in e["choices"] if c["index"] == choice["index"] and c["logprobs"]]
        assert {key: joined(part[key] for part in parts) for key in logprobs} == choice["logprobs"]


@pytest.mark.parametrize("stream", [False, True])
def test_echo_alone_scores_a_prompt(server, stream):
    body = {"prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 1}
    if stream:
        events = server.stream(PATH, **body, stream_options={"include_usage": True})
        assert text_of(events) == "abc" and events[-1]["usage"]["completion_tokens"] == 0
    else:
        reply = server.post(PATH, **body)
        assert reply["choices"][0]["text"] == "abc" and reply["usage"]["completion_tokens"] == 0
        assert reply["choices"][0]["logprobs"]["tokens"] == ["a", "b", "c"]


def test_token_ids_come_back_when_asked_for(server):
    ids = server.llm.frontend.tokenizer.encode("é")
    body = {"prompt": "é", "max_tokens": 4, "return_token_ids": True}
    choice = server.post(PATH, **body)["choices"][0]
    assert choice["token_ids"] == ids * 2 and choice["prompt_token_ids"] == ids
    events = server.stream(PATH, **body)
    assert joined(c.get("token_ids", []) for e in events for c in e["choices"]) == ids * 2


def test_prompt_logprobs_are_by_token_id(server):
    ids = server.llm.frontend.tokenizer.encode("ab")
    choice = server.post(PATH, prompt="ab", max_tokens=1, prompt_logprobs=2)["choices"][0]
    first, second = choice["prompt_logprobs"]
    assert first is None
    assert second[str(ids[1])] == {"logprob": -0.5, "rank": 1, "decoded_token": "b"} and len(second) == 2


def test_equal_prompts_share_pages_and_different_salts_do_not(server):
    prompt = "a prompt that is long enough for three pages of the pool"
    server.post(PATH, prompt=prompt, max_tokens=2)
    again = server.post(PATH, prompt=prompt, max_tokens=2)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 48
    salted = server.post(PATH, prompt=prompt, max_tokens=2, cache_salt="mine")
    assert salted["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_null_means_the_default(server):
    names = ["temperature", "n", "top_p", "stop", "seed", "logit_bias", "stream", "logprobs", "echo", "min_tokens"]
    reply = server.post(PATH, prompt="ab", max_tokens=2, **dict.fromkeys(names))
    assert reply["choices"][0]["text"] == "ab"


def test_a_long_prompt_is_tokenized_off_the_loop(server):
    prompt = "0123456789" * 400 + "x"
    long = server.post(PATH, status=400, prompt=prompt + "y" * 200)
    assert long["error"]["code"] == "context_length_exceeded"
    assert server.post(PATH, prompt=prompt[:-20], max_tokens=3)["choices"][0]["text"] == "012"
