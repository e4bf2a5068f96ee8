"""Items of /v1/responses: what they are to the model. The plain template shows it: the answer is the prompt."""

from __future__ import annotations

import pytest

from octavo.server.responses_items import chat_messages, input_items

PATH = "/v1/responses"
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "42"}
REASONING = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}


def said(role, text, kind="input_text"):
    return {"role": role, "content": [{"type": kind, "text": text}]}


def prompt_of(server, **body):
    """What the model gets: the whole of it, as its answer begins again where it ends."""
    num = server.post(PATH, max_output_tokens=1, store=False, **body)["usage"]["input_tokens"]
    response = server.post(PATH, max_output_tokens=num, **body)
    return response["output"][0]["content"][0]["text"], response


@pytest.mark.parametrize(
    ("given", "prompt"),
    [
        ("a", "user: a\nassistant: "),
        ([{"role": "user", "content": "a"}], "user: a\nassistant: "),
        ([said("developer", "d"), said("system", "s"), said("user", "a")], "system: d\n\ns\nuser: a\nassistant: "),
        ([{"role": "user", "content": ["a", "b"]}], "user: a\nb\nassistant: "),
        (
            [said("user", "a"), said("assistant", "b", "output_text"), said("user", "c")],
            "user: a\nassistant: b\nuser: c\nassistant: ",
        ),
        (
            [said("user", "a"), {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}],
            "user: a\nassistant: no\nassistant: ",
        ),
        ([said("user", "a"), said("system", "s")], "user: a\nsystem: s\nassistant: "),
    ],
)
def test_messages(server, given, prompt):
    assert prompt_of(server, input=given)[0] == prompt


def test_instructions_come_before_system_messages_as_one(server):
    items = [said("system", "s"), said("user", "a")]
    assert prompt_of(server, input=items, instructions="i")[0] == "system: i\n\ns\nuser: a\nassistant: "


def test_reasoning_text_and_calls_are_one_message_of_the_assistant():
    chat = chat_messages(input_items([said("user", "a"), REASONING, said("assistant", "b"), CALL, CALL, RESULT]))
    _, turn, result = chat
    assert turn["content"] == "b" and turn["reasoning_content"] == turn["reasoning"] == "hm"
    assert [call["function"] for call in turn["tool_calls"]] == [{"name": "f", "arguments": "{}"}] * 2
    assert result == {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "42"}


def test_another_text_or_reasoning_is_another_message():
    chat = chat_messages(input_items([REASONING, CALL, REASONING, said("assistant", "b"), said("assistant", "c")]))
    assert [(turn.get("reasoning", ""), turn["content"], len(turn.get("tool_calls", ()))) for turn in chat] == [
        ("hm", "", 1),
        ("hm", "b", 0),
        ("", "c", 0),
    ]


def test_results_may_be_parts_and_reasoning_without_text_is_nothing():
    output = [{"type": "input_text", "text": "4"}, {"type": "input_text", "text": "2"}]
    items = input_items(
        [{"type": "reasoning", "summary": [], "encrypted_content": "x"}, CALL, {**RESULT, "output": output}]
    )
    turn, result = chat_messages(items)
    assert result["content"] == "42" and "reasoning" not in turn


def test_what_a_client_sends_comes_back_with_ids():
    (item,) = input_items("a")
    assert item["id"].startswith("msg_") and item["content"] == [{"type": "input_text", "text": "a"}]
    (kept,) = input_items([{**said("assistant", "b"), "id": "msg_1", "phase": "final_answer", "status": "incomplete"}])
    assert kept["id"] == "msg_1" and kept["phase"] == "final_answer" and kept["status"] == "incomplete"
    assert kept["content"] == [{"type": "output_text", "text": "b", "annotations": []}]


# -- conversations that are kept -----------------------------------------------------------------------------------


def test_a_response_goes_on_with_an_earlier_one(server):
    prompt, first = prompt_of(server, input="a", instructions="one")
    assert prompt == "system: one\nuser: a\nassistant: "
    second, response = prompt_of(server, input="b", previous_response_id=first["id"], instructions="two")
    assert second == f"system: two\nuser: a\nassistant: {prompt}\nuser: b\nassistant: "
    assert response["previous_response_id"] == first["id"]
    third, _ = prompt_of(server, input="c", previous_response_id=response["id"])
    assert third == f"user: a\nassistant: {prompt}\nuser: b\nassistant: {second}\nuser: c\nassistant: "
