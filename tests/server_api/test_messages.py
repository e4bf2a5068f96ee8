"""POST /v1/messages in Anthropic's words: whole and streamed alike. Anthropic's own client is in tests/conformance."""

from __future__ import annotations

import json
from typing import Any

import pytest

from octavo.config import ServerOptions
from octavo.errors import InvalidRequestError, OverloadedError
from octavo.server.messages import anthropic_error
from octavo.server.messages_body import MessagesBody, ToolChoice
from octavo.sim import SimOptions

TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object", "properties": {"x": {"type": "integer"}}}}


@pytest.fixture(scope="module")
def scripted(start_server, tmp_path_factory):
    """The answer is the prompt, over and over, and the prompt is what the messages say."""
    template = tmp_path_factory.mktemp("template") / "scripted.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}{# <tool_call> enable_thinking </think> #}"
    )
    options = ServerOptions(port=0, reasoning_parser="qwen3", tool_call_parser="hermes")
    with start_server(sim=SimOptions(scripted=True), options=options, chat_template=str(template)) as running:
        yield running


def ask(server: Any, text: Any, status: int = 200, **fields: Any) -> dict[str, Any]:
    messages = fields.pop("messages", [{"role": "user", "content": text}])
    return server.post("/v1/messages", status, messages=messages, **{"max_tokens": 16, **fields})


def events_of(server: Any, text: str, **fields: Any) -> list[dict[str, Any]]:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 16, "stream": True, **fields}
    with server.client() as client:
        lines = client.post("/v1/messages", json=body).text.split("\n\n")
    found = []
    for block in filter(None, lines):
        kind, _, data = block.partition("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert kind == f"event: {found[-1]['type']}"
    return found


def gathered(events: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client has in the end: the message of message_start, filled by what came."""
    message = next(event["message"] for event in events if event["type"] == "message_start")
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"] | {"_json": ""})
        elif event["type"] == "content_block_delta":
            block, delta = message["content"][event["index"]], event["delta"]
            for name, key in (("text", "text"), ("thinking", "thinking"), ("partial_json", "_json")):
                if name in delta:
                    block[key] += delta[name]
        elif event["type"] == "message_delta":
            message |= event["delta"] | {"usage": event["usage"]}
    for block in message["content"]:
        arguments = block.pop("_json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(arguments or "{}")
    return message


def test_a_text_is_answered(server):
    message = ask(server, "hello", max_tokens=11)
    assert message["id"].startswith("msg_") and (message["type"], message["role"]) == ("message", "assistant")
    assert message["content"] == [{"type": "text", "text": "user: hello", "citations": None}]
    assert (message["stop_reason"], message["stop_sequence"]) == ("max_tokens", None)
    usage = message["usage"]
    prompt = len("user: hello\nassistant: ")
    assert usage["output_tokens"] == 11 and usage["input_tokens"] + usage["cache_read_input_tokens"] == prompt


def test_a_stream_has_every_event_in_its_order(server):
    kinds = [event["type"] for event in events_of(server, "hello", max_tokens=5)]
    assert kinds == [
        *("message_start", "ping", "content_block_start", *["content_block_delta"] * 5, "content_block_stop"),
        *("message_delta", "message_stop"),
    ]


def test_a_system_prompt_and_blocks_are_read(server):
    blocks = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}]
    message = ask(server, blocks, system=[{"type": "text", "text": "be kind"}], max_tokens=24)
    assert message["content"][0]["text"] == "system: be kind\nuser: a\n"


def test_an_answer_may_be_begun_by_the_client(server):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I say"}]
    counted = server.post("/v1/messages/count_tokens", messages=messages)
    message = ask(server, "", messages=messages)
    usage = message["usage"]
    assert counted["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_a_stop_sequence_is_told(server):
    message = ask(server, "one two", stop_sequences=["two"])
    assert [block["text"] for block in message["content"]] == ["user: one "]
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "two")


CALLS = '<think>so</think>Look: <tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>END'


def test_thoughts_texts_and_calls_are_blocks_whole_and_streamed_alike(scripted):
    fields = {"tools": [TOOL], "stop_sequences": ["END"], "thinking": {"type": "enabled", "budget_tokens": 1024}}
    fields["max_tokens"] = 200
    whole = ask(scripted, CALLS, **fields)
    thought, text, call = whole["content"]
    assert "so" in thought["thinking"] and thought["type"] == "thinking" and thought["signature"] == ""
    assert text["type"] == "text" and "Look: " in text["text"]
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "f", {"x": 1})
    assert call["id"].startswith("toolu_")
    streamed = gathered(events_of(scripted, CALLS, **fields))
    for message in (whole, streamed):
        message["content"][2]["id"] = message["id"] = ""
        message["usage"].pop("input_tokens"), message["usage"].pop("cache_read_input_tokens")
    assert streamed == whole


def test_thoughts_are_told_only_if_they_are_wanted(scripted):
    whole = ask(scripted, "<think>so</think>yesEND", stop_sequences=["END"], max_tokens=100)
    assert [block["type"] for block in whole["content"]] == ["text"]


def test_results_of_tools_go_back(scripted):
    call = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "21"}]}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": ""}, call]},
        {"role": "user", "content": [result, {"type": "text", "text": "and?"}]},
    ]
    assert ask(scripted, "", messages=messages, tools=[TOOL])["usage"]["output_tokens"] == 16


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 5000}]}, "messages"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "bad name"}]}, "tools[0].name"),
        ({"tool_choice": {"type": "tool", "name": "g"}, "tools": [TOOL]}, "tool_choice"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"temperature": -1.0}, "temperature"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"context_management": {"edits": []}}, "context_management"),
    ],
)
def test_what_cannot_be_is_refused_by_name(server, fields, param):
    error = ask(server, "x", 400, **fields)
    assert error["type"] == "error" and error["error"]["type"] == "invalid_request_error"
    assert error["error"]["param"] == param, error


def test_errors_have_anthropics_kinds(server):
    assert ask(server, "x", 404, model="other")["error"]["type"] == "not_found_error"
    assert anthropic_error(OverloadedError("Full.", fix="Wait."))["error"]["type"] == "overloaded_error"
    with server.client() as client:
        reply = client.get("/v1/messages")
        assert (reply.status_code, reply.json()["error"]["type"]) == (405, "invalid_request_error")
        assert reply.headers["request-id"] == reply.headers["x-request-id"]


def test_keys_are_wanted_in_these_words(start_server):
    with start_server(options=ServerOptions(port=0, api_key=("secret",))) as running, running.client() as client:
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        refused = client.post("/v1/messages", json=body)
        assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
        assert client.post("/v1/messages", json=body, headers={"x-api-key": "secret"}).status_code == 200


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_choices_of_tools_are_translated(choice, expected):
    body = MessagesBody(
        messages=[{"role": "user", "content": "x"}],
        max_tokens=5,
        tools=[TOOL],
        tool_choice=ToolChoice(**choice, disable_parallel_tool_use=True),
    )
    chat = body.chat("")
    assert (chat.tool_choice, chat.parallel_tool_calls) == (expected, False)
    assert chat.tools[0]["function"]["parameters"] == TOOL["input_schema"]


def test_templates_that_can_are_told_whether_to_think():
    def variables(thinking):
        body = MessagesBody(messages=[{"role": "user", "content": "x"}], max_tokens=5, thinking=thinking)
        return body.chat("{{ enable_thinking }}").chat_template_kwargs

    body = MessagesBody(messages=[{"role": "user", "content": "x"}], max_tokens=5)
    assert body.chat("no such variable").chat_template_kwargs is None
    assert variables(None) == {"enable_thinking": False}
    with pytest.raises(InvalidRequestError):
        MessagesBody(messages=[{"role": "user", "content": [{"type": "document"}]}], max_tokens=5).chat("")
