"""The default model and its grammar: what tool_choice demands is there, whatever so small a model makes of it."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from octavo.async_llm import AsyncLLM
from octavo.config import EngineConfig, ServerOptions
from octavo.frontend.parsers import AnswerParser, get, read_answer
from octavo.request import SamplingParams
from octavo.server.app import build_app
from octavo.server.chat_parts import ChatParts
from octavo.server.life import HttpServer, uvicorn_config
from octavo.server.serve import listen
from octavo.server.tools import tool_request

TEXT = {"type": "string", "maxLength": 12}
UNITS = {"enum": ["C", "F"]}
CITY = {"type": "object", "properties": {"city": TEXT, "unit": UNITS}, "required": ["city", "unit"]}
NESTED = {"type": "object", "properties": {"q": {"$ref": "#/$defs/q"}}, "required": ["q"], "$defs": {"q": TEXT}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "",
            "parameters": {**schema, "additionalProperties": False},
            "strict": True,
        },
    }
    for name, schema in (("weather", CITY), ("look_up", NESTED))
]
MESSAGES = [{"role": "user", "content": "What is the weather in Paris?"}]


def check(call):
    arguments = json.loads(call.function.arguments)
    if call.function.name == "weather":
        assert set(arguments) == {"city", "unit"} and arguments["unit"] in ("C", "F")
    else:
        assert call.function.name == "look_up" and set(arguments) == {"q"}


@pytest.mark.model
def test_choices_are_kept_by_the_default_model(smollm2_gguf):
    asyncio.run(ask(smollm2_gguf))


async def ask(smollm2_gguf):
    async with AsyncLLM.of_config(EngineConfig.of(model=str(smollm2_gguf), max_model_len=1024)) as llm:
        app = build_app(llm, ServerOptions(port=0))
        server = HttpServer(uvicorn_config(app))
        listener = listen("127.0.0.1", 0)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            options = {"model": str(smollm2_gguf), "messages": MESSAGES, "tools": TOOLS, "max_tokens": 60}
            for choice, parallel in (
                ("required", False),
                ({"type": "function", "function": {"name": "look_up"}}, True),
            ):
                more = {"tool_choice": choice, "parallel_tool_calls": parallel, "seed": 1}
                reply = await client.chat.completions.create(**options, **more)
                (call,) = reply.choices[0].message.tool_calls
                check(call)
                assert reply.choices[0].finish_reason == "tool_calls" and reply.choices[0].message.content is None
                if choice == "required":
                    async with client.chat.completions.stream(**options, **more) as stream:
                        final = await stream.get_final_completion()
                    (streamed,) = final.choices[0].message.tool_calls
                    assert (streamed.function.name, streamed.function.arguments) == (
                        call.function.name,
                        call.function.arguments,
                    )
            await ask_strictly(client, options["model"])
        server.should_exit = True
        await serving
        listener.close()


async def ask_strictly(client, model):
    """A number, which the model copies from the prompt if it may, is barred by the schema of a strict function."""
    parts = ChatParts(get("hermes"), None, None)
    params = parts.adjusted(SamplingParams(), tool_request(TOOLS, None, None), None)
    wrong = '<tool_call>\n{"name": "look_up", "arguments": {"q": 5}}\n</tool_call>\n'
    asked = {"model": model, "prompt": f"Call: {wrong}" * 6 + "Call:", "max_tokens": 40, "temperature": 0}
    free = await client.completions.create(**asked)
    assert free.choices[0].text.strip().startswith(wrong)
    kept = {"structured_outputs": {"structural_tag": params.structured_outputs.structural_tag}}
    strict = await client.completions.create(**asked, extra_body=kept)
    found = read_answer(AnswerParser(get("hermes")), strict.choices[0].text)
    name, arguments = (piece for piece in found[:2])
    assert name.text == "look_up" and isinstance(json.loads(arguments.text)["q"], str)
