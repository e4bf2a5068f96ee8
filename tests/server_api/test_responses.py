"""POST /v1/responses with OpenAI's own client: replies and events by its types, whole and streamed alike."""

from __future__ import annotations

import openai
import pytest
from openai.types import responses as types

from octavo.config import ServerOptions
from octavo.sim import SimOptions


@pytest.fixture(scope="module")
def scripted(start_server):
    """The answer is the prompt, over and over: `assistant: ` comes last in it, so text before a stop is free."""
    options = ServerOptions(port=0, reasoning_parser="qwen3", tool_call_parser="hermes")
    with start_server(sim=SimOptions(scripted=True), options=options) as running:
        yield running


def client_of(running, **options):
    return openai.OpenAI(base_url=running.url + "/v1", api_key=options.pop("key", "none"), max_retries=0, **options)


@pytest.fixture(scope="module")
def client(server):
    with client_of(server) as opened:
        yield opened


def test_a_text_is_answered(client):
    response = client.responses.create(model="sim", input="hello", max_output_tokens=11)
    assert isinstance(response, types.Response) and response.object == "response"
    assert response.output_text == "user: hello"
    assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"
    assert response.usage.output_tokens == 11 and response.usage.input_tokens == len("user: hello\nassistant: ")


def test_a_stream_has_every_event_in_its_order(client):
    events = list(client.responses.create(model="sim", input="hello", max_output_tokens=5, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 5,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
