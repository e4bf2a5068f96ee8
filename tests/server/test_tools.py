"""Tools and reasoning over HTTP. The template puts the "script" message first, so that the simulated answer is it."""

from __future__ import annotations

import json

import openai
import pytest

from octavo.server.tools import closed
from octavo.sim import SimOptions
from tests.server.conftest import joined

PATH = "/v1/chat/completions"
TEMPLATE = (
    "{% for m in messages if m.role == 'script' %}{{ m.content }}<|end|>{% endfor %}"
    "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}"
    "{% for m in messages if m.role != 'script' %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}\n{% endfor %}"
    "{# <tool_call> enable_thinking </think> #}"
)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Says it.", "parameters": SCHEMA}}
TIME = {"type": "function", "function": {"name": "time"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
NAMED = {"type": "function", "function": {"name": "weather"}}
ARRAY = '[{"name":"weather","parameters":{"city":"Bern"}},{"name":"time","parameters":{}}]'


def asking(script, **more):
    """A body whose answer is the script."""
    messages = [{"role": "script", "content": script}, {"role": "user", "content": "hi"}]
    return {"model": "sim", "messages": messages, "max_tokens": 400, **more}


@pytest.fixture(scope="module")
def template_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("template") / "scripted.jinja"
    path.write_text(TEMPLATE)
    return str(path)


@pytest.fixture(scope="module")
def server(start_server, template_file):
    with start_server(sim=SimOptions(scripted=True), chat_template=template_file) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with server.client() as http, openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", http_client=http) as made:
        yield made


def gathered(events, index=0):
    """A stream's choice as a whole one would be, and its end."""
    message, calls, reason = {}, [], None
    for choice in (c for e in events for c in e["choices"] if c["index"] == index):
        for key, value in choice["delta"].items():
            if key != "tool_calls":
                message[key] = message.get(key, "") + value
                continue
            (part,) = value
            if "id" in part:
                assert part["index"] == len(calls) and part["function"]["arguments"] == ""
                assert set(part) == {"index", "id", "type", "function"}
                calls.append({k: part[k] for k in ("id", "type", "function")})
            else:
                assert part["index"] == len(calls) - 1 and set(part) == {"index", "function"}
                calls[-1]["function"]["arguments"] += part["function"]["arguments"]
        reason = choice["finish_reason"] or reason
    return message, calls, reason


def both(server, body):
    """The first choice's message and end, which must be the same streamed and not."""
    choice = server.post(PATH, **body)["choices"][0]
    message, calls, reason = gathered(server.stream(PATH, **body))
    whole = choice["message"]
    assert (whole["content"] or "") == message["content"] and choice["finish_reason"] == reason
    assert whole.get("reasoning", "") == message.get("reasoning", "")
    assert [c["function"] for c in whole.get("tool_calls", [])] == [c["function"] for c in calls]
    return whole, reason


def test_a_call(server):
    message, reason = both(server, asking(CALL, tools=[WEATHER]))
    assert reason == "tool_calls" and message["content"] is None
    (call,) = message["tool_calls"]
    assert call["type"] == "function" and call["id"].startswith("call_") and len(call["id"]) == 29
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Zürich"}'}


def test_several_calls_with_text_before(server):
    message, reason = both(server, asking(f"Let me see.\n{CALL}\n{CALL}", tools=[WEATHER]))
    assert reason == "tool_calls" and message["content"] == "Let me see.\n"
    assert len({call["id"] for call in message["tool_calls"]}) == 2


def test_one_call_only(server):
    message, _ = both(server, asking(CALL + CALL, tools=[WEATHER], parallel_tool_calls=False))
    assert len(message["tool_calls"]) == 1


def test_no_call_is_plain_text(server):
    message, reason = both(server, asking("It is sunny <tool>.", tools=[WEATHER]))
    assert message["content"] == "It is sunny <tool>." and reason == "stop" and "tool_calls" not in message


def test_choice_none_leaves_calls_in_the_text_and_tools_out_of_the_prompt(server):
    message, reason = both(server, asking(CALL, tools=[WEATHER], tool_choice="none"))
    assert message["content"] == CALL and reason == "stop"
    without = server.post(PATH, **asking(CALL))["usage"]["prompt_tokens"]
    assert server.post(PATH, **asking(CALL, tools=[WEATHER], tool_choice="none"))["usage"]["prompt_tokens"] == without
    assert server.post(PATH, **asking(CALL, tools=[WEATHER]))["usage"]["prompt_tokens"] == without + len("weather ")


def test_choice_required(server):
    message, reason = both(server, asking(ARRAY, tools=[WEATHER, TIME], tool_choice="required"))
    assert reason == "tool_calls" and message["content"] is None
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather", "time"]
    assert message["tool_calls"][0]["function"]["arguments"] == '{"city":"Bern"}'


def test_choice_of_a_function(server):
    message, reason = both(server, asking('{"city":"Bern"}', tools=[WEATHER, TIME], tool_choice=NAMED))
    assert reason == "tool_calls" and message["content"] is None
    assert message["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city":"Bern"}'}


def test_allowed_tools(server):
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}
    one = server.post(PATH, **asking("x", tools=[WEATHER, TIME], tool_choice=choice))["usage"]["prompt_tokens"]
    assert one == server.post(PATH, **asking("x", tools=[WEATHER]))["usage"]["prompt_tokens"]


def test_an_end_within_a_call_is_length(server):
    message, reason = both(server, asking(CALL, tools=[WEATHER], max_tokens=55))
    assert reason == "length" and message["tool_calls"][0]["function"]["arguments"].startswith('{"ci')


def test_stop_strings_cut_calls(server):
    message, reason = both(server, asking(CALL, tools=[WEATHER], stop=["</tool_call>"]))
    assert reason == "tool_calls" and message["tool_calls"][0]["function"]["arguments"] == '{"city": "Zürich"}'


def test_every_choice_has_its_own_calls_and_usage_counts_all(server):
    body = asking(CALL, tools=[WEATHER], n=3, stream_options={"include_usage": True})
    events = server.stream(PATH, **body)
    ids = set()
    for index in range(3):
        message, (call,), reason = gathered(events, index)
        assert reason == "tool_calls" and message["content"] == ""
        ids.add(call["id"])
    assert len(ids) == 3
    assert events[-1]["usage"]["completion_tokens"] == 3 * (len(CALL.encode()) + 1)


def test_logprobs_and_token_ids_are_all_told(server):
    body = asking(f"<think>a</think>b{CALL}", tools=[WEATHER], logprobs=True, return_token_ids=True)
    whole = server.post(PATH, **body)["choices"][0]
    choices = [e["choices"][0] for e in server.stream(PATH, **body)]
    assert joined(c["logprobs"]["content"] for c in choices if c["logprobs"]) == whole["logprobs"]["content"]
    assert joined(c.get("token_ids", []) for c in choices) == whole["token_ids"]


def test_reasoning(server):
    message, reason = both(server, asking(f"<think>\nhm\n</think>\n\nYes.{CALL}", tools=[WEATHER]))
    assert message["reasoning"] == message["reasoning_content"] == "hm\n"
    assert message["content"] == "Yes." and len(message["tool_calls"]) == 1 and reason == "tool_calls"
    message, reason = both(server, asking("<think>hm</think>Yes."))
    assert (message["reasoning"], message["content"], reason) == ("hm", "Yes.", "stop")


def test_reasoning_can_be_left_out(server):
    message, _ = both(server, asking("<think>hm</think>Yes.", include_reasoning=False))
    assert message["content"] == "Yes." and "reasoning" not in message


def test_history_goes_through_the_template(server):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bern"}'}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    reply = server.post(PATH, model="sim", messages=messages, max_tokens=60)
    content = reply["choices"][0]["message"]["content"]
    assert content.startswith('user: hiassistant: {"city": "Bern"}tool: sunny')


FUNCTION = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("tools", {"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "f", "description": "x" * 300_000}}]}),
        ("tools[0].type", {"tools": [{"type": "custom", "custom": {"name": "f"}}]}),
        ("tools[0].type", {"tools": ["f"]}),
        ("tools[0].function", {"tools": [{"type": "function"}]}),
        ("tools[0].function.name", {"tools": [{"type": "function", "function": {"name": "a" * 65}}]}),
        ("tools[0].function.name", {"tools": [{"type": "function", "function": {"name": "a.b"}}]}),
        ("tools[0].function.name", {"tools": [{"type": "function", "function": {}}]}),
        ("tools[1].function.name", {"tools": [FUNCTION, FUNCTION]}),
        ("tools[0].function.parameters", {"tools": [{"function": {"name": "f", "parameters": {"type": "array"}}}]}),
        ("tools[0].function.parameters", {"tools": [{"function": {"name": "f", "parameters": [1]}}]}),
        ("tools[0].function.strict", {"tools": [{"function": {"name": "f", "strict": "yes"}}]}),
        ("tool_choice", {"tool_choice": "required"}),
        ("tool_choice", {"tools": [FUNCTION], "tool_choice": "maybe"}),
        ("tool_choice", {"tools": [FUNCTION], "tool_choice": 3}),
        ("tool_choice", {"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "g"}}}),
        ("tool_choice", {"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}),
        ("messages[0].tool_call_id", {"messages": [{"role": "tool", "content": "x"}]}),
        ("messages[0].tool_calls", {"messages": [{"role": "assistant", "tool_calls": "f"}]}),
        ("messages[0].tool_calls[0]", {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}),
    ],
)
def test_what_cannot_be_is_refused(server, param, body):
    error = server.post(PATH, 400, **{"messages": [{"role": "user", "content": "hi"}], **body})["error"]
    assert error["param"] == param


def test_flags(start_server, template_file):
    from octavo.config import ServerOptions

    options = ServerOptions(port=0, tool_call_parser="pythonic", reasoning_parser="none")
    with start_server(options=options, chat_template=template_file) as server:
        body = asking('[weather(city="Bern")]', tools=[WEATHER])
        assert both(server, body)[0]["tool_calls"][0]["function"]["arguments"] == '{"city": "Bern"}'
        assert both(server, asking("<think>a</think>"))[0]["content"] == "<think>a</think>"
    off = ServerOptions(port=0, tool_call_parser="none")
    with start_server(options=off, chat_template=template_file) as server:
        assert server.post(PATH, 400, **asking("x", tools=[WEATHER]))["error"]["param"] == "tool_choice"
        assert server.post(PATH, **asking("x", tools=[WEATHER], tool_choice="none"))["choices"]


def test_a_template_without_tools_gets_them_in_words(start_server):
    with start_server() as server:
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 300}
        content = server.post(PATH, **body, tools=[WEATHER])["choices"][0]["message"]["content"]
        assert content.startswith("system: You may call functions.") and '"name": "weather"' in content
        assert server.post(PATH, **body, tools=[WEATHER], tool_choice="none")["usage"]["prompt_tokens"] < 30


# -- the openai package --------------------------------------------------------------------------------------------


def test_openai_client_auto(client):
    reply = client.chat.completions.create(**asking(CALL, tools=[WEATHER], tool_choice="auto"))
    (call,) = reply.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Zürich"} and reply.choices[0].finish_reason == "tool_calls"
    body = asking(CALL, tools=[WEATHER], parallel_tool_calls=False)
    with client.chat.completions.stream(**body) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert call.function.name == "weather" and json.loads(call.function.arguments) == {"city": "Zürich"}


@pytest.mark.parametrize(
    ("choice", "script", "num_calls"),
    [("required", ARRAY, 2), (NAMED, '{"city":"Bern"}', 1), ("none", "Sunny.", 0)],
)
def test_openai_client_other_choices(client, choice, script, num_calls):
    body = asking(script, tools=[WEATHER, TIME], tool_choice=choice)
    whole = client.chat.completions.create(**body).choices[0].message
    with client.chat.completions.stream(**body) as stream:
        streamed = stream.get_final_completion().choices[0].message
    for message in (whole, streamed):
        assert len(message.tool_calls or []) == num_calls
        assert (message.content or "") == ("" if num_calls else script)


@pytest.mark.parametrize("schema", [{"properties": {}}, {"properties": {"a": {}, "b": {}}, "required": ["a"]}])
def test_forced_arguments_have_no_others_than_the_schema_names(schema):
    assert closed({"type": "object", **schema}) == {"type": "object", **schema, "additionalProperties": False}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"properties": {"a": {}}, "additionalProperties": {"type": "string"}},
        {"properties": {"a": {}}, "patternProperties": {"^b": {}}},
        {"properties": {"a": {}}, "anyOf": [{"required": ["b"]}]},
        {"properties": {"a": {}}, "$ref": "#/$defs/more"},
        {"properties": {"a": {}}, "required": ["b"]},
        {"properties": {"a": {}}, "required": [{}]},
        {"properties": {"a": {}}, "required": "a"},
        {"properties": []},
    ],
)
def test_schemas_that_speak_of_further_arguments_stay_open(schema):
    assert closed({"type": "object", **schema}) == {"type": "object", **schema}
