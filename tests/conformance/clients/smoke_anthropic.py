"""Anthropic's own package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from target import MODEL, QUESTION, URL, WEATHER

OPTIONS: dict[str, Any] = {"model": MODEL, "max_tokens": 24, "extra_body": {"temperature": 0}}
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
TOOL: Any = {"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}


@pytest.fixture
def client() -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0) as client:
        yield client


def test_a_message_and_its_stream_agree(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(**OPTIONS, messages=MESSAGES, system="You are a painter.")
    assert "red" in whole.content[0].text.lower() and whole.usage.output_tokens == 24
    assert whole.stop_reason == "max_tokens"
    with client.messages.stream(**OPTIONS, messages=MESSAGES, system="You are a painter.") as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        final = stream.get_final_message()
    assert final.usage.output_tokens == 24 and final.stop_reason == "max_tokens"


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_tool_is_used_and_its_result_is_taken(client: anthropic.Anthropic, choice: Any) -> None:
    options = {**OPTIONS, "max_tokens": 64}
    reply = client.messages.create(**options, messages=MESSAGES, tools=[TOOL], tool_choice=choice)
    (use,) = reply.content[:1]
    assert reply.stop_reason == "tool_use" and use.type == "tool_use" and use.name == "get_weather"
    assert use.input["unit"] in ("celsius", "fahrenheit")
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "21 degrees"}
    messages = [*MESSAGES, {"role": "assistant", "content": reply.content}, {"role": "user", "content": [result]}]
    assert client.messages.create(**OPTIONS, messages=messages, tools=[TOOL]).usage.input_tokens > 0


def test_errors_are_anthropics(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**OPTIONS, "model": "no-such-model"}, messages=MESSAGES)
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(**{**OPTIONS, "max_tokens": -1}, messages=MESSAGES)
    assert refused.value.body["type"] == "error" and refused.value.body["error"]["type"] == "invalid_request_error"
