"""`octavo chat` against a server of known answers."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from octavo.cli.app import main
from octavo.cli.chat import request_body, root_of
from octavo.cli.sampling import SamplingOptions


class Handler(BaseHTTPRequestHandler):
    """Streams two pieces and usage; with `failure`, an error before or within the stream."""

    failure: tuple[int, str] | None = None
    seen: ClassVar[list] = []

    def do_GET(self):
        self._reply(200, json.dumps({"data": [{"id": "the-model"}]}).encode(), "application/json")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Handler.seen.append((self.path, dict(self.headers), body))
        if Handler.failure and Handler.failure[0] != 200:
            status, message = Handler.failure
            self._reply(status, json.dumps({"error": {"message": message}}).encode(), "application/json")
            return
        events = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
        events += [{"choices": [{"delta": {"content": piece}}]} for piece in ("Grüße", " 🌍")]
        if Handler.failure:
            events.append({"error": {"message": Handler.failure[1]}})
        events.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        events.append({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}})
        text = "".join(f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events) + "data: [DONE]\n\n"
        self._reply(200, text.encode(), "text/event-stream")

    def _reply(self, status, data, kind):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def url(monkeypatch):
    monkeypatch.setattr(Handler, "failure", None)
    monkeypatch.setattr(Handler, "seen", [])
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(5)


def test_one_answer_is_streamed_to_stdout(url, capsys):
    assert main(["chat", "--url", url, "Hello", "you", "--stats", "--system", "S", "--temperature", "0"]) == 0
    out, err = capsys.readouterr()
    assert out == "Grüße 🌍\n"
    assert "2 tokens · prompt 9" in err
    path, headers, body = Handler.seen[0]
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert body["model"] == "the-model"
    assert body["messages"] == [{"role": "system", "content": "S"}, {"role": "user", "content": "Hello you"}]
    assert (body["temperature"], body["stream"]) == (0.0, True)


def test_model_and_key_are_sent(url):
    assert main(["chat", "--url", f"{url}/v1/", "--model", "m", "--api-key", "k", "hi"]) == 0
    _, headers, body = Handler.seen[0]
    assert (headers["Authorization"], body["model"]) == ("Bearer k", "m")


def test_chat_keeps_the_conversation(url, terminal):
    terminal("first", "second")
    assert main(["chat", "--url", url]) == 0
    assert [message["content"] for message in Handler.seen[1][2]["messages"]] == ["first", "Grüße 🌍", "second"]


@pytest.mark.parametrize(
    ("failure", "status", "words"),
    [
        ((400, "too long"), 1, "too long"),
        ((401, "no key"), 2, "--api-key"),
        ((503, "full"), 1, "busy"),
        ((200, "engine died"), 1, "engine died"),
    ],
)
def test_what_the_server_refuses_is_shown(url, failure, status, words, capsys):
    Handler.failure = failure
    assert main(["chat", "--url", url, "hi"]) == status
    assert words in capsys.readouterr().err


def test_no_server_is_a_clear_error(capsys):
    assert main(["chat", "--url", "http://127.0.0.1:9", "hi"]) == 6
    assert "octavo serve" in capsys.readouterr().err


@pytest.mark.parametrize("pasted", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/", "h:1"])
def test_urls_are_taken_as_people_paste_them(pasted):
    assert root_of(pasted) == "http://h:1"


def test_fields_openai_lacks_are_sent_only_where_they_do_something():
    neutral = {name: field.default for name, field in SamplingOptions.__dataclass_fields__.items()}
    assert not {"top_k", "min_p", "repetition_penalty", "ignore_eos", "seed", "stop"} & set(request_body(neutral))
    assert request_body({**neutral, "top_k": 5})["top_k"] == 5
