"""`octavo batch`: every line gets its answer or its error, once, whatever happens in between."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import cli
from octavo.async_llm import AsyncLLM
from octavo.config import EngineConfig, ServerOptions
from octavo.errors import ConfigError, EngineDeadError
from octavo.server import batch as batch_module
from octavo.server.app import build_app
from octavo.server.auth import KeyRing
from octavo.server.batch import URLS, run_batch
from octavo.server.batch_files import OutputFile, count_lines, read_requests
from octavo.server.serve import make_llm
from octavo.sim import SimOptions
from octavo.sim.serve import sim_client

OPTIONS = ServerOptions(request_timeout=0.0)


def line(custom_id, url="/v1/completions", **body):
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})


def completions(count, **body):
    return [line(f"r{i}", prompt=f"{i}.", **{"max_tokens": 4, **body}) for i in range(count)]


def write(path, lines):
    path.write_text("".join(each + "\n" for each in lines))
    return path


def read(path):
    return [json.loads(each) for each in path.read_bytes().splitlines()]


@pytest.fixture
def files(tmp_path):
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


@pytest.fixture
def run(sim_folder):
    """Run a batch over a simulated engine; `beside` is a coroutine that runs at the same time, with the model."""

    def start(source, destination, *, sim=None, max_in_flight=16, options=OPTIONS, beside=None, on_line=None):
        config = EngineConfig.of(model="sim", tokenizer=str(sim_folder))

        async def main():
            llm = make_llm(config, options, None, sim_client(sim or SimOptions()))
            await llm.load()
            try:
                app = build_app(llm, options, KeyRing())
                work = run_batch(app, source, destination, max_in_flight=max_in_flight, on_line=on_line)
                if beside is None:
                    return await work
                task = asyncio.create_task(work)
                await beside(llm, task)
                return await task
            finally:
                await llm.close()

        return asyncio.run(main())

    return start


def test_answers_are_those_of_the_endpoints(run, files, server):
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "logprobs": True}
    bodies = {
        "/v1/completions": {"prompt": ["ab", "cd"], "n": 2, "max_tokens": 3},
        "/v1/chat/completions": chat,
        "/v1/embeddings": {"input": "ab", "dimensions": 3},
    }
    write(files[0], [line(url, url, **body) for url, body in bodies.items()])
    summary = run(*files)
    for told in read(files[1]):
        expected = server.post(told["custom_id"], **bodies[told["custom_id"]])
        got = told["response"]["body"]
        assert told["response"]["status_code"] == 200 and told["error"] is None and told["response"]["request_id"]
        assert {k: v for k, v in got.items() if k not in ("id", "created")} == {
            k: v for k, v in expected.items() if k not in ("id", "created")
        }
    assert (summary.succeeded, summary.num_lines, summary.completion_tokens) == (3, 3, 17)
    assert set(bodies) <= set(URLS)


def test_responses_are_lines_too(run, files):
    write(files[0], [line("r", "/v1/responses", input="ab", max_output_tokens=6)])
    summary = run(*files)
    (told,) = read(files[1])
    (item,) = told["response"]["body"]["output"]
    assert told["response"]["status_code"] == 200 and item["content"][0]["text"] == "user: "
    assert (summary.succeeded, summary.prompt_tokens, summary.completion_tokens) == (1, 20, 6)


BAD = [
    ("nope", "invalid_json", None),
    ("[]", "invalid_type", None),
    ('{"custom_id": 5, "url": "/v1/completions", "body": {}}', "invalid_type", None),
    ('{"custom_id": "x", "body": {}}', "invalid_type", "x"),
    ('{"custom_id": "y", "url": "/v1/completions"}', "invalid_type", "y"),
    ('{"custom_id": "", "url": "/v1/completions", "body": {}}', "invalid_value", ""),
    ('{"custom_id": "z", "method": "GET", "url": "/v1/models", "body": {}}', "invalid_value", "z"),
    (line("good", prompt="again"), "duplicate_custom_id", "good"),
    (
        '{"custom_id": "w", "url": "/v1/completions", "body": {"prompt": "' + "x" * 80_000 + '"}}',
        "body_too_large",
        None,
    ),
    ('{"custom_id": "\\ud800", "url": "/v1/completions", "body": {}}', "invalid_json", None),
    ('{"custom_id": "v", "url": "/v1/completions", "body": ' + "[" * 9000, "invalid_json", None),
]
REFUSED = [
    (line("s", prompt="x", stream=True), "unsupported_value"),
    (line("u", "/v1/files"), "unsupported_value"),
    (line("t", prompt="x", temperature=9), "invalid_value"),
    (line("m", prompt="x", model="other"), "model_not_found"),
    ('{"custom_id": "b", "url": "/v1/completions", "body": 5}', "invalid_type"),
    ('{"custom_id": "d", "url": "/v1/completions", "body": ' + "[" * 100 + "]" * 100 + "}", "too_deep"),
]


def test_bad_lines_get_an_error_each_and_lose_nothing(run, files):
    lines = [
        line("good", prompt="ab", max_tokens=2),
        "",
        "   ",
        *(each for each, _, _ in BAD),
        *(r for r, _ in REFUSED),
    ]
    write(files[0], [*lines, line("last", prompt="cd", max_tokens=2)])
    options = ServerOptions(max_body_bytes=10_000, request_timeout=0.0)
    summary = run(*files, options=options)
    told = read(files[1])
    errors = {each["error"]["line"]: each for each in told if each["error"]}
    for number, (_, code, custom_id) in enumerate(BAD, 4):
        assert (errors[number]["error"]["code"], errors[number]["custom_id"]) == (code, custom_id), number
        assert errors[number]["response"] is None
    by_id = {each["custom_id"]: each["response"] for each in told if each["response"]}
    for text, code in REFUSED:
        reply = by_id[json.loads(text)["custom_id"]]
        assert reply["status_code"] in (400, 404) and reply["body"]["error"]["code"] == code
    assert by_id["last"]["body"]["choices"][0]["text"] == "cd" and by_id["good"]["status_code"] == 200
    assert (summary.succeeded, summary.refused, summary.bad_lines) == (2, len(REFUSED), len(BAD))
    assert len(told) == count_lines(files[0]) == summary.num_lines
    again = run(*files, options=options)
    assert again.skipped == summary.num_lines and read(files[1]) == told


def test_a_run_goes_on_where_another_was_cut_off(run, files):
    write(files[0], completions(30, max_tokens=20))

    async def cut(llm, task):
        while not files[1].exists() or len(read(files[1])) < 5:
            await asyncio.sleep(0.01)
        task.cancel()

    with pytest.raises(asyncio.CancelledError):
        run(*files, sim=SimOptions(step_seconds=0.005), max_in_flight=4, beside=cut)
    before = read(files[1])
    assert 5 <= len(before) < 30
    with files[1].open("ab") as file:
        file.write(b'{"id":"batch_req_1234","custom_id":"r2')  # as a full disk leaves it
    summary = run(*files)
    told = read(files[1])
    assert told[: len(before)] == before and summary.skipped == len(before)
    assert sorted(each["custom_id"] for each in told) == sorted(f"r{i}" for i in range(30))


def test_failures_of_the_server_are_asked_again_and_refusals_are_not(run, files):
    write(files[0], completions(3))
    body = {"error": {"message": "", "type": "server_error", "param": None, "code": "x"}}
    replies = [(f"r{i}", status) for i, status in enumerate((500, 400, 200))]
    response = {"request_id": "1", "body": body}
    lines = [
        {"id": "batch_req_1", "custom_id": i, "response": {**response, "status_code": s}, "error": None}
        for i, s in replies
    ]
    files[1].write_text("\n".join(map(json.dumps, lines)))  # without a line's end
    summary = run(*files)
    assert (summary.skipped, summary.succeeded) == (2, 1)
    assert [each["custom_id"] for each in read(files[1])] == ["r0", "r1", "r2", "r0"]


@pytest.mark.parametrize("content", ["a letter\n", '{"my": "config"}', '{"id": 5}\n', line("x") + "\n", "{"])
def test_a_file_of_another_kind_is_left_alone(files, content):
    files[1].write_text(content)
    if content == "{":  # what a first line that was cut off may look like
        OutputFile(files[1]).close()
        assert files[1].read_text() == ""
        return
    with pytest.raises(ConfigError, match="no answer of a batch"):
        OutputFile(files[1])
    assert files[1].read_text() == content


def test_files_that_cannot_be_used_are_named(run, files, tmp_path):
    with pytest.raises(ConfigError, match=r"in\.jsonl cannot be read"):
        count_lines(files[0])
    with pytest.raises(ConfigError, match=r"in\.jsonl cannot be read"):
        run(*files)
    write(files[0], completions(1))
    with pytest.raises(ConfigError, match="cannot be written"):
        OutputFile(tmp_path / "none" / "out.jsonl")
    with pytest.raises(ConfigError, match="cannot be written"):
        OutputFile(tmp_path)
    with pytest.raises(ConfigError, match="no plain file"):
        OutputFile(Path("/dev/zero"))
    with pytest.raises(ConfigError, match="the same file"):
        run(files[0], files[0])
    os.link(files[0], tmp_path / "link")
    with pytest.raises(ConfigError, match="the same file"):
        run(files[0], tmp_path / "link")
    with files[1].open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="Another run"):
            OutputFile(files[1])


def test_a_full_disk_ends_the_run_without_half_a_line(run, files, monkeypatch):
    write(files[0], completions(6))
    real, room = os.write, [2000]

    def full(file, data):
        taken = min(len(data), room[0])
        room[0] -= taken
        if not taken:
            raise OSError(28, "No space left on device")
        return real(file, data[:taken])

    monkeypatch.setattr("octavo.server.batch_files.os.write", full)
    with pytest.raises(ConfigError, match="No space left"):
        run(*files)
    monkeypatch.undo()
    told = read(files[1])
    assert 0 < len(told) < 6 and files[1].read_bytes().endswith(b"\n")
    assert run(*files).num_lines == 6 and len(read(files[1])) == 6


def test_so_many_are_open_at_a_time(run, files):
    write(files[0], completions(24, max_tokens=8))
    most, tokens = [0], []

    async def watch(llm, task):
        while not task.done():
            most[0] = max(most[0], llm.num_open)
            await asyncio.sleep(0.001)

    run(*files, sim=SimOptions(step_seconds=0.004), max_in_flight=6, beside=watch, on_line=tokens.append)
    assert 2 <= most[0] <= 6 and tokens == [8] * 24


def test_more_than_the_queue_takes_wait(sim_folder, files, monkeypatch):
    """503s are for the batch to wait out, not for its lines to tell."""
    monkeypatch.setattr(batch_module, "_PAUSE_SECONDS", 0.2)
    write(files[0], completions(12, max_tokens=2))
    config = EngineConfig.of(model="sim", tokenizer=str(sim_folder), max_num_queued_reqs=2)

    async def main():
        llm = AsyncLLM.of_config(config, client=sim_client(SimOptions(step_seconds=0.002)))
        async with llm:
            app = build_app(llm, OPTIONS, KeyRing())
            return await run_batch(app, *files, max_in_flight=4)

    assert asyncio.run(main()).succeeded == 12


def test_an_engine_that_dies_is_started_again_and_its_requests_asked_again(run, files):
    write(files[0], completions(12, max_tokens=30))

    async def kill(llm, task):
        while not llm.stats.num_running:
            await asyncio.sleep(0.01)
        llm._client._client._process.kill()

    summary = run(*files, sim=SimOptions(step_seconds=0.01), max_in_flight=4, beside=kill)
    assert summary.succeeded == 12 and len(read(files[1])) == 12


def test_an_engine_that_stays_dead_ends_the_run_and_the_answers_stay(run, files):
    write(files[0], completions(40, max_tokens=2))
    options = ServerOptions(request_timeout=0.0, max_engine_restarts=0)
    with pytest.raises(EngineDeadError):
        run(*files, sim=SimOptions(fault="raise", fault_step=12), max_in_flight=2, options=options)
    num_before = len(read(files[1]))
    assert 0 < num_before < 40
    assert run(*files).skipped == num_before
    assert len({each["custom_id"] for each in read(files[1])}) == 40


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.binary(max_size=30), st.sampled_from([b"{}", b"  ", line("a").encode()])), max_size=8))
def test_every_line_that_is_not_blank_is_told_of(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(b"\n".join(lines))
    numbers = [n for n, each in enumerate(b"\n".join(lines).split(b"\n"), 1) if each.strip()]
    told = list(read_requests(path, 1000))
    assert [each.number for each in told] == numbers and count_lines(path) == len(numbers)
    assert all((each.request is None) != (each.error is None) for each in told)


@pytest.mark.model
def test_the_verb(smollm2_gguf, files):
    question = {"messages": [{"role": "user", "content": "Name the capital of France."}], "max_tokens": 12}
    write(files[0], [line("q", "/v1/chat/completions", temperature=0, **question), "broken"])
    command = [sys.executable, "-m", "octavo.cli", "batch", *map(str, files), str(smollm2_gguf)]
    environ = {**os.environ, "OCTAVO_API_KEY": "a-key-that-is-no-matter-here"}
    done = subprocess.run(
        [*command, "--max-model-len", "512"], capture_output=True, text=True, timeout=120, env=environ
    )
    assert done.returncode == 0, done.stderr
    answers = {each["custom_id"]: each for each in read(files[1])}
    assert "Paris" in answers["q"]["response"]["body"]["choices"][0]["message"]["content"]
    assert answers[None]["error"]["line"] == 2 and "generated tokens/s" in done.stdout


@pytest.mark.parametrize(
    "arguments", [["/nowhere.jsonl", "out"], ["in", "/nowhere/out"], ["in", "out", "--max-in-flight", "0"]]
)
def test_what_cannot_be_worked_through_ends_with_a_status_of_its_own(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in", completions(1))
    assert cli.main(["batch", *arguments]) == 2
    assert "nowhere" in (told := capsys.readouterr().err) or "max-in-flight" in told
