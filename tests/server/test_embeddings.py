"""POST /v1/embeddings: the simulated model counts a prompt's tokens by their remainder modulo 32."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

PATH = "/v1/embeddings"


def expected(server, text, dimensions=None, normalize=True):
    ids = server.llm.frontend.tokenizer.encode(text) if isinstance(text, str) else text
    counts = np.bincount(np.array(ids) % 32, minlength=32).astype(np.float32)[:dimensions]
    return counts / np.linalg.norm(counts) if normalize else counts


def test_a_text(server):
    reply = server.post(PATH, model="sim", input="abc abc")
    assert reply["object"] == "list" and reply["model"] == "sim"
    assert reply["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    (data,) = reply["data"]
    assert data["object"] == "embedding" and data["index"] == 0 and len(data["embedding"]) == 32
    np.testing.assert_allclose(data["embedding"], expected(server, "abc abc"), atol=1e-6)


@pytest.mark.parametrize("given", [["ab", "grün"], [[5, 6, 7], [8]], [9, 10, 11], ["x"]], ids=str)
def test_every_shape_of_input(server, given):
    reply = server.post(PATH, input=given, pooling="mean")
    items = [given] if isinstance(given[0], int) else given
    assert [data["index"] for data in reply["data"]] == list(range(len(items)))
    for data, item in zip(reply["data"], items, strict=True):
        np.testing.assert_allclose(data["embedding"], expected(server, item), atol=1e-6)


def test_base64_is_the_same_in_float32(server):
    body = {"input": ["abc", "d"], "dimensions": 7}
    plain, coded = (server.post(PATH, encoding_format=kind, **body)["data"] for kind in ("float", "base64"))
    for one, other in zip(plain, coded, strict=True):
        values = np.frombuffer(base64.b64decode(other["embedding"], validate=True), "<f4")
        np.testing.assert_array_equal(values, np.array(one["embedding"], np.float32))
        assert len(values) == 7


def test_dimensions_and_raw_values(server):
    cut = server.post(PATH, input="abcabc", dimensions=9)["data"][0]["embedding"]
    np.testing.assert_allclose(cut, expected(server, "abcabc", 9), atol=1e-6)
    raw = server.post(PATH, input="abcabc", normalize=False)["data"][0]["embedding"]
    np.testing.assert_array_equal(raw, expected(server, "abcabc", normalize=False))


def test_the_openai_client(server):
    """It asks for base64 by itself and decodes it."""
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        reply = client.embeddings.create(model="sim", input=["abc", "xyz"], dimensions=28)
        np.testing.assert_allclose(reply.data[1].embedding, expected(server, "xyz", 28), atol=1e-6)
        assert reply.usage.prompt_tokens == 6 and reply.data[0].index == 0


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "input", "invalid_value"),
        ({"input": None}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": ""}, "input", "invalid_value"),
        ({"input": ["a", ""]}, "input", "invalid_value"),
        ({"input": [[]]}, "input", "invalid_value"),
        ({"input": ["a", 3]}, "input", "invalid_value"),
        ({"input": [1, "a"]}, "input", "invalid_value"),
        ({"input": [[1, "a"]]}, "input", "invalid_value"),
        ({"input": [True]}, "input", "invalid_value"),
        ({"input": [-1]}, "input", "invalid_value"),
        ({"input": [99999]}, "input", "invalid_value"),
        ({"input": {"a": 1}}, "input", "invalid_type"),
        ({"input": ["a"] * 2049}, "input", "invalid_value"),
        ({"input": "a" * 100_000}, "input", "context_length_exceeded"),
        ({"input": list(range(5, 200)) * 30}, "input", "context_length_exceeded"),
        ({"input": "a", "dimensions": 0}, "dimensions", "invalid_value"),
        ({"input": "a", "dimensions": 33}, "dimensions", "invalid_value"),
        ({"input": "a", "dimensions": 10**30}, "dimensions", "invalid_value"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "invalid_type"),
        ({"input": "a", "pooling": "max"}, "pooling", "invalid_type"),
        ({"input": "a", "cache_salt": "no spaces"}, "cache_salt", "invalid_value"),
        ({"input": "a", "priority": 2**40}, "priority", "invalid_value"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_what_cannot_be_is_refused_by_name(server, body, param, code):
    error = server.post(PATH, status=400, **body)["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert len(error["message"]) < 500


def test_other_models_are_not_here(server):
    assert server.post(PATH, status=404, input="a", model="other")["error"]["code"] == "model_not_found"


def test_many_inputs_pass_through_few_rows(start_server):
    with start_server(max_num_seqs=4) as server:
        texts = [f"text {i}" for i in range(300)]
        reply = server.post(PATH, input=texts)
        assert len(reply["data"]) == 300
        for text, data in zip(texts[::37], reply["data"][::37], strict=True):
            np.testing.assert_allclose(data["embedding"], expected(server, text), atol=1e-6)
        server.wait(lambda: server.llm.num_open == 0)


def test_a_failure_in_the_engine_is_a_clean_error(start_server):
    from octavo.sim import SimOptions

    with start_server(sim=SimOptions(fault="fail", fault_step=1)) as server:
        assert server.post(PATH, status=500, input="abc")["error"]["code"] == "request_failed"
        assert server.post(PATH, input="abc")["usage"]["prompt_tokens"] == 3


def test_a_client_that_hangs_up_ends_its_requests(start_server):
    from octavo.sim import SimOptions

    with start_server(sim=SimOptions(step_seconds=0.3), max_num_seqs=1) as server:
        with pytest.raises(Exception, match="timed out"), server.client() as client:
            client.post(PATH, json={"input": ["a"] * 50}, timeout=0.5)
        server.wait(lambda: server.llm.num_open == 0, 3.0)
