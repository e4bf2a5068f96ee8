"""openai-agents over chat completions."""

from __future__ import annotations

from typing import Literal

import agents
import openai
from openai.types.responses import ResponseTextDeltaEvent
from target import BASE_URL, MODEL, QUESTION

called: list[str] = []


@agents.function_tool
def get_color(shade: Literal["dark", "light"]) -> str:
    """A color of a shade.

    Args:
        shade: dark or light.
    """
    called.append(shade)
    return "navy"


def agent(client: openai.AsyncOpenAI, **more: object) -> agents.Agent:
    llm = agents.OpenAIChatCompletionsModel(model=MODEL, openai_client=client)
    return agents.Agent(name="Painter", instructions="You help painters.", model=llm, **more)


async def test_a_run_and_its_stream_agree() -> None:
    settings = agents.ModelSettings(temperature=0, max_tokens=24)
    async with openai.AsyncOpenAI(base_url=BASE_URL, api_key="none", max_retries=0) as client:
        painter = agent(client, model_settings=settings)
        whole = await agents.Runner.run(painter, QUESTION)
        stream = agents.Runner.run_streamed(painter, QUESTION)
        events = [event async for event in stream.stream_events() if event.type == "raw_response_event"]
    assert "red" in whole.final_output.lower()
    deltas = [event.data.delta for event in events if isinstance(event.data, ResponseTextDeltaEvent)]
    assert "".join(deltas) == whole.final_output == stream.final_output


async def test_a_tool_is_run() -> None:
    settings = agents.ModelSettings(temperature=0, max_tokens=64, tool_choice="required")
    async with openai.AsyncOpenAI(base_url=BASE_URL, api_key="none", max_retries=0) as client:
        painter = agent(client, model_settings=settings, tools=[get_color], tool_use_behavior="stop_on_first_tool")
        result = await agents.Runner.run(painter, "Name a dark color.")
    assert called and result.final_output == "navy"
