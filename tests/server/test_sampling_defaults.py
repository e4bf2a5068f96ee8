"""What a model's makers advise is what requests get that do not say."""

from __future__ import annotations

import json

import pytest

from octavo.config import EngineConfig, ServerOptions
from octavo.errors import ConfigError
from octavo.frontend.sampling_defaults import sampling_defaults
from tests.tiny_models import make_tiny_llama

ADVICE = {"do_sample": True, "temperature": 1, "top_p": 0.9, "top_k": 40, "max_new_tokens": 7, "eos_token_id": [1, 2]}
MESSAGES = [{"role": "user", "content": "hello"}]


def write(folder, content):
    folder.mkdir(exist_ok=True)
    (folder / "generation_config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder)


def test_requests_that_do_not_say_get_what_the_file_advises(start_server, tmp_path):
    folder = write(tmp_path / "advice", ADVICE | {"temperature": 0.6})
    with start_server(options=ServerOptions(port=0, generation_config=folder), max_model_len=256) as server:
        reply = server.post("/v1/responses", input="hello")
        assert (reply["temperature"], reply["top_p"], reply["usage"]["output_tokens"]) == (0.6, 0.9, 7)
        reply = server.post("/v1/responses", input="hello", temperature=1.5, max_output_tokens=3)
        assert (reply["temperature"], reply["top_p"], reply["usage"]["output_tokens"]) == (1.5, 0.9, 3)
        for path, body in (("completions", {"prompt": "hello"}), ("chat/completions", {"messages": MESSAGES})):
            assert server.post(f"/v1/{path}", **body)["usage"]["completion_tokens"] == 7
            assert server.post(f"/v1/{path}", max_tokens=2, **body)["usage"]["completion_tokens"] == 2
        beams = {"use_beam_search": True, "n": 2, "max_tokens": 3, "prompt": "hello"}
        assert len(server.post("/v1/completions", **beams)["choices"]) == 2


def test_without_advice_openai_s_defaults_hold(start_server):
    with start_server(max_model_len=256) as server:
        reply = server.post("/v1/responses", input="hello", max_output_tokens=3)
        assert (reply["temperature"], reply["top_p"]) == (1.0, 1.0)


def test_whose_advice(tmp_path):
    own = make_tiny_llama(tmp_path / "model")
    config = EngineConfig.of(model=str(own))
    assert sampling_defaults("auto", config) == {}
    write(own, ADVICE)
    taken = {"temperature": 1.0, "top_p": 0.9, "top_k": 40, "max_tokens": 7}
    assert sampling_defaults("auto", config) == taken
    assert sampling_defaults("none", config) == {}
    other = write(tmp_path / "other", {"repetition_penalty": 1.1, "min_p": None})
    assert sampling_defaults(other, config) == {"repetition_penalty": 1.1}


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", {"temperature": -1}, {"top_p": "high"}, {"top_k": 1.5}, {"max_new_tokens": 0}, "[" * 100_000, None],
)
def test_advice_that_cannot_be_is_refused_at_the_start(content, tmp_path):
    folder = tmp_path / "advice"
    if content is not None:
        write(folder, content)
    with pytest.raises(ConfigError, match="generation_config") as caught:
        sampling_defaults(str(folder), EngineConfig.of(model="sim"))
    assert caught.value.param == "generation_config" and "--generation-config none" in str(caught.value)
