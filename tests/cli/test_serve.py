"""`octavo serve`, before and after the server itself."""

from __future__ import annotations

import json
import shlex
import sys
import types
from pathlib import Path

import pytest

import octavo.server.auth  # noqa: F401 - before `server` takes its package away
from octavo.cli.app import main
from octavo.cli.serve import example
from octavo.errors import EngineDeadError
from tests.cli.conftest import Info


@pytest.fixture
def server(monkeypatch):
    """`octavo.server` is replaced by one that is ready at once; the value collects its arguments."""
    calls = []

    def serve(config, options, on_ready, *, progress, **more):
        calls.append((config, options, *more))
        progress("load weights", 0.5)
        on_ready(Info(notes=("The context was cut.",)), "http://127.0.0.1:8123")
        return 0

    module = types.ModuleType("octavo.server")
    module.serve = serve
    monkeypatch.setitem(sys.modules, "octavo.server", module)
    monkeypatch.setattr("octavo.weights.resolve.resolve", lambda name, revision=None: None)
    return calls


def test_flags_reach_server_and_engine(server):
    line = "serve some/model --port 0 --api-key a --api-key b --served-model-name m --max-body-bytes 1MiB"
    assert main([*line.split(), "--max-num-seqs", "3", "--drain-timeout", "2.5"]) == 0
    config, options = server[0]
    assert (config.model.model, config.scheduler.max_num_seqs) == ("some/model", 3)
    assert (options.port, options.api_key, options.served_model_name) == (0, ("a", "b"), ("m",))
    assert (options.max_body_bytes, options.drain_timeout) == (1 << 20, 2.5)


def test_a_simulated_engine_needs_no_model(server, monkeypatch):
    monkeypatch.setattr("octavo.cli.serve.ensure_here", lambda options: pytest.fail("no model is wanted"))
    assert main(["serve", "--backend", "sim", "--port", "0"]) == 0
    config, _, *more = server[0]
    assert more == ["client"] and config.model.model == "sim"
    assert not Path(config.model.tokenizer).exists()  # it was there while it served


def test_a_config_file_may_repeat_an_option(server, tmp_path):
    (tmp_path / "o.yaml").write_text("api-key: [a, b]\nserved-model-name: m\nport: 9\n")
    assert main(["serve", "--config", str(tmp_path / "o.yaml")]) == 0
    options = server[0][1]
    assert (options.api_key, options.served_model_name, options.port) == (("a", "b"), ("m",), 9)


def test_the_report_says_what_is_served_and_how_to_ask(server, capsys):
    assert main(["serve"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "LlamaForCausalLM · cpu, 2 threads" in err
    assert "KV pages  256 MiB" in err
    assert "The context was cut." in err
    assert "http://127.0.0.1:8123/v1" in err


@pytest.mark.parametrize("name", ["SmolLM2-135M-Instruct", 'it\'s "quoted" $HOME'])
def test_the_example_is_one_shell_command(name):
    words = shlex.split(example("http://h:1", name, needs_key=True))
    assert words[:2] == ["curl", "http://h:1/v1/chat/completions"]
    assert "Authorization: Bearer KEY" in words
    assert json.loads(words[-1])["model"] == name


def test_impossible_options_fail_before_anything_loads(server, capsys):
    assert main(["serve", "--port", "70000"]) == 2
    assert "--port cannot be 70000" in capsys.readouterr().err
    assert server == []


def test_the_engines_end_is_an_exit_status(server, monkeypatch, capsys):
    def dead(*_, **__):
        raise EngineDeadError("The engine's process ended.", fix="See its log.")

    monkeypatch.setattr(sys.modules["octavo.server"], "serve", dead)
    assert main(["serve"]) == 5
    assert "engine_dead" in capsys.readouterr().err
