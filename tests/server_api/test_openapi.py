"""The OpenAPI document and its page: every route is there, with what the structs say, and both are well-formed."""

from __future__ import annotations

from html.parser import HTMLParser

import jsonschema
import msgspec
import pytest

from octavo.config import ServerOptions
from octavo.server.openapi import ENDPOINTS, document
from octavo.server.protocol import ChatBody, CompletionBody
from octavo.server.protocol_fields import REFUSED


def served(**options):
    return ServerOptions(port=0, enable_tokenizer_info_endpoint=True, **options)


@pytest.fixture(scope="module")
def everything(start_server):
    with start_server(options=served()) as running:
        yield running


def test_every_route_is_described_and_no_other(everything):
    paths = everything.get("/openapi.json").json()["paths"]
    told = {path: ",".join(methods).upper() for path, methods in paths.items()}
    there = {path: method for path, (method, _) in everything.app._routes.items()}
    named = {"/v1/models/{model}": "GET", "/v1/responses/{response_id}": "GET,DELETE"}
    assert told == there | named | {"/v1/responses/{response_id}/input_items": "GET"}
    assert len(ENDPOINTS) == sum(map(len, paths.values()))


def test_a_route_that_is_not_served_is_not_described(server):
    assert "/tokenizer_info" not in server.get("/openapi.json").json()["paths"]


def test_every_field_of_the_bodies_is_there_with_its_bounds(everything):
    schemas = everything.get("/openapi.json").json()["components"]["schemas"]
    for body in (ChatBody, CompletionBody):
        assert set(schemas[body.__name__]["properties"]) == {each.name for each in msgspec.structs.fields(body)} - {
            *REFUSED
        }
    fields = schemas["CompletionBody"]["properties"]
    assert schemas["CompletionBody"]["required"] == ["prompt"]
    assert fields["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 2}
    assert fields["model"]["anyOf"][0]["enum"] == ["sim"]
    assert fields["stop_token_ids"]["anyOf"][0]["items"]["maximum"] == 319
    assert fields["temperature"]["description"].startswith("0 means greedy")


def test_references_lead_somewhere_and_schemas_are_schemas(everything):
    whole = everything.get("/openapi.json").json()
    schemas = whole["components"]["schemas"]
    for name, schema in schemas.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["description"], name

    def references(value):
        if isinstance(value, dict):
            yield from [value["$ref"]] if "$ref" in value else []
            value = list(value.values())
        if isinstance(value, list):
            for each in value:
                yield from references(each)

    found = {each.removeprefix("#/components/schemas/") for each in references(whole)}
    assert found <= set(schemas)


@pytest.mark.parametrize("keyed", [False, True])
def test_security_is_that_of_the_server(start_server, keyed):
    options = served(api_key=("k",) if keyed else ())
    with start_server(options=options) as running, running.client() as client:
        whole = client.get("/openapi.json", headers={"x-api-key": "k"}).json()
        for path, methods in whole["paths"].items():
            for method, operation in methods.items():
                reply = client.request(method, path.replace("{model}", "sim"), json={} if method == "post" else None)
                assert (reply.status_code == 401) == bool(operation["security"]), path
    assert set(whole["components"]["securitySchemes"]) == {"bearer", "key"}


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links, self.ids, self.text = [], set(), set(), ""

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        values = dict(attrs)
        self.ids |= {values["id"]} if "id" in values else set()
        self.links |= {values["href"]} if "href" in values else set()

    def handle_data(self, data):
        self.text += data


def test_the_page_can_be_read_without_anything_from_elsewhere(everything):
    reply = everything.get("/docs")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    reader = Reader()
    reader.feed(reply.text)
    assert not {"script", "link", "img", "iframe"} & set(reader.open)
    assert {link[1:] for link in reader.links if link.startswith("#")} <= reader.ids
    assert {link for link in reader.links if not link.startswith("#")} == {"openapi.json"}
    for endpoint in ENDPOINTS:
        assert endpoint.path in reader.text
    for word in ("repetition_penalty", "TokenLogprob", "at most 16 items"):
        assert word in reader.text


def test_names_of_models_are_text_on_the_page(start_server):
    with start_server(options=served(served_model_name=("<script>alert(1)</script>",))) as running:
        assert "<script" not in running.get("/docs").text


def test_while_it_loads_there_is_a_document_without_facts_of_the_model(start_server):
    from octavo.sim import SimOptions

    with start_server(sim=SimOptions(startup_seconds=0.5), wait=False) as running:
        before = running.get("/openapi.json").json()
        running.wait(lambda: running.llm.state == "ready", 10)
        after = running.get("/openapi.json").json()
    ids = [each["components"]["schemas"]["CompletionBody"]["properties"]["stop_token_ids"] for each in (before, after)]
    assert "maximum" not in ids[0]["anyOf"][0]["items"] and ids[1]["anyOf"][0]["items"]["maximum"] == 319


def test_the_document_says_its_version():
    assert document()["openapi"] == "3.1.0"


def test_whole_numbers_may_be_written_with_a_point_and_whole_numbers_only(server):
    """To JSON, and so to the document's schemas, 2.0 is an integer."""
    choice = server.post("/v1/completions", prompt="ab", max_tokens=2.0, n=1.0, logit_bias={"1": 1})["choices"][0]
    assert choice["text"] == "ab"
    assert server.post("/detokenize", tokens=[64.0, 65]) == {"prompt": "ab"}
    for value in (2.5, 1e30, "2", True):
        assert server.post("/v1/completions", 400, prompt="ab", max_tokens=value)["error"]["param"] == "max_tokens"


def test_tools_with_giant_numbers_are_refused(server):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "default": 2**70}}}
    messages = [{"role": "user", "content": "x"}]
    assert server.post("/v1/chat/completions", 400, messages=messages, tools=[tool])["error"]["param"] == "tools"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": 0, "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "assistant", "content": [None], "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]},
        {"role": "user", "content": 5},
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_contents_that_are_no_text_are_refused_beside_calls_too(server, path, message):
    error = server.post(path, 400, messages=[{"role": "user", "content": "x"}, message])["error"]
    assert error["param"].startswith("messages[1].content")


def test_what_completions_cannot_act_on_is_refused(server):
    tool = {"type": "function", "function": {"name": "f"}}
    assert server.post("/v1/completions", 400, prompt="x", tools=[tool])["error"]["param"] == "tools"
    for flags in ({"strict": 0}, {"strict": ""}, {"description": 0}):
        bad = {"type": "function", "function": {"name": "f", **flags}}
        reply = server.post("/v1/chat/completions", 400, messages=[{"role": "user", "content": "x"}], tools=[bad])
        assert reply["error"]["param"] == f"tools[0].function.{next(iter(flags))}"
