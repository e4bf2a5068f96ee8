"""POST /v1/chat/completions; the simulated template is "role: content" lines, and the answer repeats the prompt."""

from __future__ import annotations

import pytest

from octavo.config import ServerOptions
from tests.server.conftest import joined

PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
RENDERED = "user: hi\nassistant: "


@pytest.fixture(scope="module")
def server(start_server):
    with start_server(max_model_len=256) as running:
        yield running


def test_a_conversation_is_answered(server):
    reply = server.post(PATH, model="sim", messages=MESSAGES, max_tokens=8)
    assert reply["object"] == "chat.completion" and reply["id"].startswith("chatcmpl-")
    assert reply["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "user: hi", "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
        }
    ]
    assert reply["usage"]["prompt_tokens"] == len(RENDERED)


def test_without_a_bound_an_answer_may_fill_the_context(server):
    reply = server.post(PATH, messages=MESSAGES)
    assert reply["usage"]["total_tokens"] == 256 and reply["choices"][0]["finish_reason"] == "length"


def test_the_server_may_bound_answers_whose_requests_name_no_bound(start_server):
    with start_server(options=ServerOptions(port=0, default_max_tokens=5), max_model_len=256) as bounded:
        assert bounded.post(PATH, messages=MESSAGES)["usage"]["completion_tokens"] == 5
        assert bounded.post(PATH, messages=MESSAGES, max_tokens=9)["usage"]["completion_tokens"] == 9


def test_max_completion_tokens_goes_before_max_tokens(server):
    reply = server.post(PATH, messages=MESSAGES, max_tokens=9, max_completion_tokens=3)
    assert reply["usage"]["completion_tokens"] == 3


def test_a_stream_begins_with_the_role_and_ends_with_an_empty_delta(server):
    events = server.stream(PATH, messages=MESSAGES, max_tokens=8, n=2, stream_options={"include_usage": True})
    assert all(event["object"] == "chat.completion.chunk" for event in events)
    assert len({(e["id"], e["created"], e["model"]) for e in events}) == 1
    *chunks, last = events
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 16
    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in chunks)
    for index in (0, 1):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert all("finish_reason" in choice and "logprobs" in choice for choice in mine)
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(choice["delta"].get("content", "") for choice in mine) == "user: hi"
        assert [choice["finish_reason"] for choice in mine if choice["finish_reason"]] == ["length"]
        assert mine[-1]["delta"] == {} and mine[-1]["finish_reason"] == "length"


def test_usage_is_left_out_of_streams_unless_asked_for(server):
    assert all("usage" not in event for event in server.stream(PATH, messages=MESSAGES, max_tokens=2))


def test_logprobs_have_bytes_and_the_likeliest(server):
    body = {"messages": [{"role": "é", "content": ""}], "max_tokens": 2, "logprobs": True, "top_logprobs": 3}
    choice = server.post(PATH, **body)["choices"][0]
    content = choice["logprobs"]["content"]
    assert [entry["bytes"] for entry in content] == [[0xC3], [0xA9]] and choice["logprobs"]["refusal"] is None
    assert [len(entry["top_logprobs"]) for entry in content] == [3, 3]
    assert content[0]["top_logprobs"][0] == {k: v for k, v in content[0].items() if k != "top_logprobs"}
    events = server.stream(PATH, **body)
    streamed = [e["choices"][0]["logprobs"]["content"] for e in events if e["choices"][0]["logprobs"]]
    assert joined(streamed) == content


def test_logprobs_without_top_logprobs(server):
    content = server.post(PATH, messages=MESSAGES, max_tokens=2, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in content] == [[], []]


def test_content_parts_are_text(server):
    parts = [{"type": "text", "text": "hi"}]
    assert server.post(PATH, messages=[{"role": "user", "content": parts}], max_tokens=8)["choices"][0]["message"][
        "content"
    ] == ("user: hi")


def test_the_last_message_can_be_continued(server):
    messages = [*MESSAGES, {"role": "assistant", "content": "I am"}]
    body = {"messages": messages, "add_generation_prompt": False, "continue_final_message": True, "max_tokens": 4}
    assert server.post(PATH, **body)["usage"]["prompt_tokens"] == len("user: hi\nassistant: I am")


def test_token_ids_come_back_when_asked_for(server):
    body = {"messages": MESSAGES, "max_tokens": 2, "return_token_ids": True}
    reply = server.post(PATH, **body)
    assert len(reply["prompt_token_ids"]) == len(RENDERED) and len(reply["choices"][0]["token_ids"]) == 2
    events = server.stream(PATH, **body)
    assert events[0]["prompt_token_ids"] == reply["prompt_token_ids"]
    ids = joined(e["choices"][0].get("token_ids", []) for e in events)
    assert ids == reply["choices"][0]["token_ids"]


def test_prompt_logprobs_are_of_the_whole_reply(server):
    reply = server.post(PATH, messages=MESSAGES, max_tokens=1, prompt_logprobs=0)
    assert len(reply["prompt_logprobs"]) == len(RENDERED) and reply["prompt_logprobs"][0] is None


def test_unknown_fields_are_ignored(server):
    known = {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "made_up": [1]}
    assert server.post(PATH, messages=MESSAGES, max_tokens=2, **known)["choices"]
