"""Schemathesis over our own OpenAPI document: what it allows and what it forbids, against a live server.

No 5xx, every reply as the document says, forbidden data refused; and after each endpoint the server is as it was.
"""

from __future__ import annotations

from collections import Counter

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from octavo.config import ServerOptions
from octavo.server.openapi import ENDPOINTS

EXAMPLES = 50
BODIES = [endpoint.path for endpoint in ENDPOINTS if endpoint.body is not None]
PLAIN = [endpoint.path for endpoint in ENDPOINTS if endpoint.body is None and "{" not in endpoint.path]
MODEL = "/v1/models/{model}"

load_all_checks()
# What the document allows may contradict itself (min_tokens above max_tokens), or not fit the context: that is a 400.
NOT_HELD = [CHECKS.get_one("positive_data_acceptance")]
EVERY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def live(start_server):
    options = ServerOptions(port=0, enable_tokenizer_info_endpoint=True, max_logprobs=5)
    with start_server(options=options, max_model_len=256) as running:
        yield running


@pytest.fixture(scope="module")
def schema(live):
    document = live.get("/openapi.json").json()
    loaded = schemathesis.openapi.from_dict(document)
    loaded.config.update(base_url=live.url)
    return loaded


@pytest.fixture(scope="module")
def session():
    with requests.Session() as opened:
        yield opened


@pytest.fixture(autouse=True)
def unharmed(live):
    yield
    assert live.get("/ready").status_code == 200
    live.wait(lambda: live.llm.num_open == 0 and live.llm.stats.num_running == 0 and live.llm.stats.num_waiting == 0)
    live.wait(lambda: live.llm.stats.num_free_pages == live.llm.stats.num_pages)
    assert live.post("/v1/completions", prompt="well?", max_tokens=5)["choices"][0]["text"] == "well?"


def fuzz(strategy, session):
    """Statuses of the replies to all cases; each reply must be as the document says."""
    statuses = Counter()

    @seed(20)
    @EVERY
    @given(case=strategy)
    def run(case):
        reply = case.call(session=session)
        statuses[reply.status_code] += 1
        case.validate_response(reply, excluded_checks=NOT_HELD)

    run()
    return statuses


@pytest.mark.parametrize("path", BODIES)
def test_what_the_document_allows(schema, session, path):
    statuses = fuzz(schema[path]["POST"].as_strategy(generation_mode=GenerationMode.POSITIVE), session)
    assert set(statuses) <= {200, 400} and statuses.total() >= EXAMPLES
    assert statuses[200] >= EXAMPLES // 5, statuses


@pytest.mark.parametrize("path", BODIES)
def test_what_the_document_forbids(schema, session, path):
    statuses = fuzz(schema[path]["POST"].as_strategy(generation_mode=GenerationMode.NEGATIVE), session)
    assert set(statuses) <= {400, 404} and statuses.total() >= EXAMPLES


def test_names_of_models(schema, session):
    operation = schema[MODEL]["GET"]
    assert set(fuzz(operation.as_strategy(generation_mode=GenerationMode.POSITIVE), session)) == {200}
    statuses = fuzz(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE), session)
    assert set(statuses) <= {404, 414} and statuses.total() >= EXAMPLES


@pytest.mark.parametrize("path", PLAIN)
def test_routes_without_a_body_care_for_no_query(schema, session, path):
    operation = schema[path]["GET"]
    queries = st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=3)
    cases = queries.map(lambda query: operation.Case(query=query))
    statuses = fuzz(cases, session)
    assert set(statuses) == {200} and statuses.total() >= EXAMPLES


def test_the_checks_find_what_is_not_as_the_document_says(live, session):
    """A document that lies is found out."""
    document = live.get("/openapi.json").json()
    document["components"]["schemas"]["Tokenized"]["properties"]["count"] = {"type": "string"}
    loaded = schemathesis.openapi.from_dict(document)
    loaded.config.update(base_url=live.url)
    case = loaded["/tokenize"]["POST"].Case(body={"prompt": "a"}, media_type="application/json")
    with pytest.raises(schemathesis.core.failures.FailureGroup):
        case.validate_response(case.call(), excluded_checks=NOT_HELD)
