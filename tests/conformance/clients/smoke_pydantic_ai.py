"""pydantic-ai's agents over OpenAI's chat model."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings
from target import BASE_URL, MODEL, QUESTION

LLM = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=BASE_URL, api_key="none"))
SETTINGS = ModelSettings(temperature=0, max_tokens=48)


class Weather(BaseModel):
    """The weather of a day."""

    sky: Literal["clear", "cloudy"]
    warm: bool


async def test_chat_and_its_stream_agree() -> None:
    agent = Agent(LLM, model_settings=SETTINGS)
    whole = await agent.run(QUESTION)
    assert "red" in whole.output.lower() and whole.usage.output_tokens > 0
    async with agent.run_stream(QUESTION) as stream:
        assert [text async for text in stream.stream_text()][-1] == whole.output


async def test_structured_output_by_a_tool_and_by_a_schema() -> None:
    for kind in (ToolOutput, NativeOutput):
        agent = Agent(LLM, output_type=kind(Weather), model_settings=SETTINGS)
        result = await agent.run("It is a warm day with a clear sky.")
        assert isinstance(result.output, Weather)
