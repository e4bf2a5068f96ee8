"""litellm, as its documentation points it at a server of OpenAI's kind."""

from __future__ import annotations

import json
from typing import Any

import litellm
from target import BASE_URL, MODEL, QUESTION, WEATHER

OPTIONS: dict[str, Any] = {
    "model": "openai/" + MODEL,
    "api_base": BASE_URL,
    "api_key": "none",
    "messages": [{"role": "user", "content": QUESTION}],
    "temperature": 0,
    "max_tokens": 24,
}


def test_chat_and_its_stream_agree() -> None:
    whole = litellm.completion(**OPTIONS)
    assert "red" in whole.choices[0].message.content.lower() and whole.usage.completion_tokens == 24
    chunks = list(litellm.completion(**OPTIONS, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert litellm.stream_chunk_builder(chunks).usage.total_tokens == whole.usage.total_tokens


def test_a_tool_is_called() -> None:
    reply = litellm.completion(**{**OPTIONS, "max_tokens": 64}, tools=[WEATHER], tool_choice="required")
    call = reply.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather" and reply.choices[0].finish_reason == "tool_calls"
    assert json.loads(call.function.arguments)["unit"] in ("celsius", "fahrenheit")


def test_text_completion_embedding_and_errors() -> None:
    plain = {key: value for key, value in OPTIONS.items() if key not in ("messages", "model")}
    text = litellm.text_completion(model="text-completion-openai/" + MODEL, prompt="1, 2, 3, 4,", **plain)
    assert text.choices[0].text.startswith(" 5")
    vectors = litellm.embedding(
        model="openai/" + MODEL, input=["one", "two"], api_base=BASE_URL, api_key="none", encoding_format="float"
    )
    assert len(vectors.data) == 2 and len(vectors.data[0]["embedding"]) == 576
    try:
        litellm.completion(**{**OPTIONS, "model": "openai/no-such-model"})
    except litellm.NotFoundError as error:
        assert "no-such-model" in str(error)
    else:
        raise AssertionError("a model that is not served was served")
