"""POST /v1/responses: replies and events by the types of OpenAI's client, the same whole and streamed."""

from __future__ import annotations

import json

import openai
import pydantic
import pytest
from openai.types import responses as types

from octavo.sim import SimOptions
from tests.server.test_tools import ARRAY, CALL, SCHEMA

PATH = "/v1/responses"
# The instructions are the script: the simulated answer is the prompt, which ends there.
TEMPLATE = (
    "{% for m in messages if m.role == 'system' %}{{ m.content }}<|end|>{% endfor %}"
    "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}"
    "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{# <tool_call> enable_thinking </think> tool_calls arguments #}"
)
WEATHER = {"type": "function", "name": "weather", "description": "Says it.", "parameters": SCHEMA}
TIME = {"type": "function", "name": "time"}
EVENT = pydantic.TypeAdapter(types.ResponseStreamEvent)
ENDS = {"completed": "response.completed", "incomplete": "response.incomplete", "failed": "response.failed"}


@pytest.fixture(scope="module")
def server(start_server, tmp_path_factory):
    path = tmp_path_factory.mktemp("template") / "scripted.jinja"
    path.write_text(TEMPLATE)
    with start_server(sim=SimOptions(scripted=True), chat_template=str(path)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with server.client() as http, openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", http_client=http) as made:
        yield made


def asking(script, **more):
    """A body whose answer is the script."""
    return {"model": "sim", "instructions": script, "input": "hi", "max_output_tokens": 400, **more}


def events_of(server, body):
    """The decoded events of a stream, each checked by its type, its name and its number."""
    text = server.raw_stream(PATH, **body).decode()
    *blocks, done, rest = text.split("\n\n")
    assert done == "data: [DONE]" and rest == ""
    events = []
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}" and event["sequence_number"] == number
        EVENT.validate_python(event)
        events.append(event)
    return events


def gathered(events):
    """The last event's response; that the events before tell of the same, in the order that they must have."""
    kinds = [event["type"] for event in events]
    response = events[-1]["response"]
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == ENDS[response["status"]]
    assert events[0]["response"]["status"] == "in_progress" and events[0]["response"]["output"] == []
    assert {each["response"]["id"] for each in events if "response" in each} == {response["id"]}
    done, rest = [], iter(events[2:-1])
    for event in rest:
        if event["type"] == "error":
            break
        assert event["type"] == "response.output_item.added" and event["output_index"] == len(done)
        done.append(gathered_item(event["item"], rest, len(done)))
    assert done == response["output"]
    return response


def gathered_item(begun, events, index):
    """An item that begins, to its end; texts are what their deltas say."""
    text, logprobs, told, place = "", [], [], {"item_id": begun["id"], "output_index": index}
    for event in events:
        kind = event["type"]
        if kind == "response.output_item.done":
            item = event["item"]
            break
        assert {name: event[name] for name in place} == place
        if kind.endswith("delta"):
            text += event["delta"]
            logprobs += event.get("logprobs", [])
        else:
            told.append(kind)
    stem = {"message": "output_text", "reasoning": "reasoning_text"}.get(begun["type"], "function_call_arguments")
    if begun["type"] == "function_call":
        assert told == [f"response.{stem}.done"] and item["arguments"] == text and begun["arguments"] == ""
    else:
        assert told == ["response.content_part.added", f"response.{stem}.done", "response.content_part.done"]
        assert [part["text"] for part in item["content"]] == [text] and begun["content"] == []
        assert item["content"][0].get("logprobs", []) == logprobs
    assert begun["status"] == "in_progress" and begun["id"] == item["id"]
    return item


def nameless(response):
    """What of a response does not differ between two of the same body."""
    output = [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in response["output"]]
    kept = {k: v for k, v in response.items() if k not in ("id", "created_at", "completed_at", "usage")}
    usage = {k: v for k, v in response["usage"].items() if k != "input_tokens_details"}
    return kept | {"output": output, "usage": usage}


def both(server, body):
    """The response, which must be the same streamed and not, and of OpenAI's type."""
    whole = server.post(PATH, **body)
    types.Response.model_validate(whole)
    assert nameless(whole) == nameless(gathered(events_of(server, body)))
    return whole


# -- answers -------------------------------------------------------------------------------------------------------


def test_a_text(server):
    response = both(server, asking("Hello!", temperature=0.5, top_p=0.9, metadata={"a": "b"}, user="me"))
    (item,) = response["output"]
    assert item["type"] == "message" and item["status"] == "completed" and item["id"].startswith("msg_")
    assert item["content"] == [{"type": "output_text", "text": "Hello!", "annotations": [], "logprobs": []}]
    assert response["status"] == "completed" and response["completed_at"] >= response["created_at"]
    assert response["error"] is response["incomplete_details"] is None
    told = {"temperature": 0.5, "top_p": 0.9, "metadata": {"a": "b"}, "user": "me", "max_output_tokens": 400}
    assert response.items() >= (told | {"instructions": "Hello!", "truncation": "disabled", "store": True}).items()
    assert response["usage"]["output_tokens"] == 7  # with the end
    assert response["usage"]["total_tokens"] == response["usage"]["input_tokens"] + 7


def test_an_answer_that_is_cut(server):
    response = both(server, asking("Hello!", max_output_tokens=3))
    assert response["status"] == "incomplete" and response["completed_at"] is None
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete" and response["output"][0]["content"][0]["text"] == "Hel"


def test_an_answer_without_a_word_is_an_empty_message(server):
    (item,) = both(server, asking("Hello!", stop_token_ids=[39]))["output"]
    assert item["content"][0]["text"] == "" and item["status"] == "completed"


def test_reasoning_text_and_calls_in_their_order(server):
    script = f"<think>\nWell, well.\n</think>\n\nLet me see. {CALL}{CALL}"
    response = both(server, asking(script, tools=[WEATHER]))
    reasoning, message, *calls = response["output"]
    assert reasoning["type"] == "reasoning" and reasoning["summary"] == []
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Well, well."}] or reasoning["content"]
    assert message["content"][0]["text"].strip() == "Let me see."
    assert [json.loads(call["arguments"]) for call in calls] == [{"city": "Zürich"}] * 2
    assert {call["name"] for call in calls} == {"weather"} and len({call["call_id"] for call in calls}) == 2
    assert all(call["call_id"].startswith("call_") and call["id"].startswith("fc_") for call in calls)
    tokens = response["usage"]["output_tokens_details"]["reasoning_tokens"]
    assert len("Well, well.") <= tokens <= len("<think>\nWell, well.\n</think>\n\n")


def test_reasoning_may_stay_untold_and_is_counted_nevertheless(server):
    script = "<think>\nWell, well.\n</think>\n\nYes."
    told = both(server, asking(script))
    untold = both(server, asking(script, include_reasoning=False))
    assert [item["type"] for item in told["output"]] == ["reasoning", "message"]
    assert untold["output"][0]["type"] == "message" and len(untold["output"]) == 1
    assert untold["usage"]["output_tokens_details"] == told["usage"]["output_tokens_details"]


def test_a_call_that_is_cut(server):
    response = both(server, asking(CALL, tools=[WEATHER], max_output_tokens=55))
    assert response["status"] == response["output"][-1]["status"] == "incomplete"
    assert response["output"][-1]["arguments"].startswith('{"ci')


def test_calls_that_must_be(server):
    response = both(server, asking(ARRAY, tools=[WEATHER, TIME], tool_choice="required"))
    assert [call["name"] for call in response["output"]] == ["weather", "time"]
    choice = {"type": "function", "name": "weather"}
    response = both(server, asking('{"city":"Bern"}', tools=[WEATHER, TIME], tool_choice=choice))
    assert response["output"][0]["arguments"] == '{"city":"Bern"}' and response["tool_choice"] == choice
    assert response["tools"][1] == {**TIME, "description": None, "parameters": None, "strict": False}
    one = both(server, asking(CALL + CALL, tools=[WEATHER], parallel_tool_calls=False))
    assert len(one["output"]) == 1 and one["parallel_tool_calls"] is False


def test_allowed_tools(server):
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "time"}]}
    some = server.post(PATH, **asking("x", tools=[WEATHER, TIME], tool_choice=choice))["usage"]["input_tokens"]
    assert some == server.post(PATH, **asking("x", tools=[TIME]))["usage"]["input_tokens"]


@pytest.mark.parametrize("script", ["Hello!", "<think>\nso\n</think>\n\nHello!", f"Hello! {CALL}"])
def test_logprobs_are_those_of_the_text(server, script):
    tools = [WEATHER] if CALL in script else None
    response = both(server, asking(script, top_logprobs=2, tools=tools))
    (message,) = [item for item in response["output"] if item["type"] == "message"]
    (part,) = message["content"]
    assert part["text"].strip() == "Hello!"
    spelled = "".join(entry["token"] for entry in part["logprobs"]).removesuffix("<|end|>")
    assert "Hello!" in spelled and len(part["logprobs"][0]["top_logprobs"]) == 2
    bare = server.post(PATH, **asking("Hello!", include=["message.output_text.logprobs"]))
    assert bare["output"][0]["content"][0]["logprobs"][0]["top_logprobs"] == []


def test_deltas_may_be_filled_up(server):
    events = events_of(server, asking("Hello!", stream_options={"include_obfuscation": True}))
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert {(len(each["delta"]) + len(each["obfuscation"])) % 64 for each in deltas} == {0}
    assert gathered(events)["output"][0]["content"][0]["text"] == "Hello!"


def test_times_on_demand(server):
    assert server.post(PATH, **asking("x", timing=True))["timing"]["requests"][0]["total_time"] > 0
    assert "timing" not in server.post(PATH, **asking("x"))


# -- OpenAI's client -----------------------------------------------------------------------------------------------


def test_the_clients_helpers(client):
    class City(pydantic.BaseModel):
        city: str

    parsed = client.responses.parse(text_format=City, **asking('{"city": "Bern"}'))
    assert parsed.output_parsed == City(city="Bern") and parsed.text.format.type == "json_schema"
    with client.responses.stream(**asking(f"Hello! {CALL}", tools=[WEATHER])) as stream:
        kinds = [event.type for event in stream]
        response = stream.get_final_response()
    assert response.output_text.strip() == "Hello!" and response.output[1].name == "weather"
    assert kinds.count("response.output_text.delta") > 3 and kinds[-1] == "response.completed"


def test_a_loop_of_calls(client):
    """The way that agents go: the output and the results of its calls are the next input."""
    first = client.responses.create(**asking(CALL, tools=[WEATHER]))
    results = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
        for call in first.output
        if call.type == "function_call"
    ]
    items = [{"role": "user", "content": "hi"}, *first.output, *results]
    second = client.responses.create(**asking("It rains.", tools=[WEATHER], input=items))
    third = client.responses.create(
        **asking("It rains.", tools=[WEATHER], input=results, previous_response_id=first.id)
    )
    assert second.output_text == third.output_text == "It rains."
    assert second.usage.input_tokens == third.usage.input_tokens


# -- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["fail", "raise"])
def test_a_stream_that_breaks_off(start_server, fault):
    with start_server(sim=SimOptions(fault=fault, fault_step=5)) as running:
        body = {"input": "hello", "max_output_tokens": 20}
        events = events_of(running, body)
        response = gathered(events)
        assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
        assert events[-2]["code"] in ("request_failed", "engine_dead", "internal_error")
        assert response["error"]["code"] == "server_error" and response["error"]["message"]
        assert response["output"][0]["status"] == "incomplete" and response["output"][0]["content"][0]["text"] == "user"
        if fault == "fail":
            assert running.get(f"{PATH}/{response['id']}", 404)


INPUT_IMAGE = {"type": "input_image", "image_url": "http://127.0.0.1/x.png"}
REFUSALS = {
    "input": [{}, {"input": []}, {"input": ""} | {"input": None}],
    "input[0]": [{"input": [1]}],
    "input[0].type": [{"input": [{"type": "web_search_call", "id": "x"}]}, {"input": [{"type": "item_reference"}]}],
    "input[0].role": [{"input": [{"content": "x"}]}, {"input": [{"role": "tool", "content": "x"}]}],
    "input[0].content": [{"input": [{"role": "user"}]}, {"input": [{"role": "user", "content": 1}]}],
    "input[0].content[0].type": [
        {"input": [{"role": "user", "content": [INPUT_IMAGE]}]},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
    ],
    "input[0].output[0].type": [{"input": [{"type": "function_call_output", "call_id": "c", "output": [INPUT_IMAGE]}]}],
    "input[0].call_id": [{"input": [{"type": "function_call_output", "output": "x"}]}],
    "input[0].arguments": [{"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}]}],
    "input[0].id": [{"input": [{"role": "user", "content": "x", "id": "a b"}]}],
    "input[0].status": [{"input": [{"role": "user", "content": "x", "status": "gone"}]}],
    "tools[0].type": [{"tools": [{"type": "web_search"}]}, {"tools": [{"type": "mcp", "server_label": "x"}]}],
    "tools[0].name": [{"tools": [{"type": "function"}]}, {"tools": [{"type": "function", "name": "a b"}]}],
    "tools[0].parameters": [{"tools": [{**TIME, "parameters": {"type": "string"}}]}],
    "tool_choice": [{"tool_choice": "required"}, {"tools": [TIME], "tool_choice": {"type": "function", "name": "x"}}],
    "text.format": [{"text": {"format": {"type": "x"}}}, {"text": {"format": {"type": "json_schema", "name": "x"}}}],
    "max_output_tokens": [{"max_output_tokens": 0}, {"max_output_tokens": 10**6}],
    "top_logprobs": [{"top_logprobs": 21}, {"top_logprobs": -1}],
    "truncation": [{"truncation": "auto"}],
    "background": [{"background": True}],
    "conversation": [{"conversation": "conv_1"}],
    "prompt": [{"prompt": {"id": "pmpt_1"}}],
    "context_management": [{"context_management": [{"type": "compaction"}]}],
    "include": [{"include": ["everything"]}],
    "reasoning": [{"reasoning": {"effort": "enormous"}}],
    "max_tokens": [{"max_tokens": 5}, {"max_tokens": 0}],
    "n": [{"n": 2}, {"n": 0}],
    "response_format": [{"response_format": {"type": "json_object"}}],
    "prompt_logprobs": [{"prompt_logprobs": 0}],
    "previous_response_id": [{"previous_response_id": "resp_none"}],
    "metadata": [{"metadata": {str(index): "x" for index in range(17)}}],
    "model": [{"model": "another"}],
}


@pytest.mark.parametrize("param", REFUSALS)
def test_what_is_refused_is_named(server, param):
    for more in REFUSALS[param]:
        body = {"input": "x", "max_output_tokens": 4} | more
        body = {} if not more else body
        for streamed in ({}, {"stream": True}):
            error = server.post(PATH, 404 if param == "model" else 400, **body, **streamed)["error"]
            assert error["param"] == param and error["message"], error
