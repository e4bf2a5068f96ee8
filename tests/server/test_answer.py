"""The way of an update to its connection: short where the reader keeps up, through the stream's task else."""

from __future__ import annotations

import concurrent.futures
import gc
from collections import Counter

import httpx
import pytest

from octavo.server.chunk_writer import ChunkWriter
from octavo.server.render import Rendering
from octavo.sim import SimOptions

COMPLETIONS = "/v1/completions"
SLOW = SimOptions(step_seconds=0.01)
LONG = {"prompt": "abcdefg", "max_tokens": 30, "ignore_eos": True}


def text_of(events):
    return "".join(event["choices"][0]["text"] for event in events)


def test_most_tokens_go_the_short_way(start_server, monkeypatch):
    parts = []
    write = ChunkWriter.write
    monkeypatch.setattr(ChunkWriter, "write", lambda self, part: (parts.append(part), write(self, part)))
    with start_server(sim=SLOW) as running:
        events = running.stream(COMPLETIONS, **LONG)
    assert text_of(events) == ("abcdefg" * 5)[:30]
    assert len(parts) > 20
    assert all(part.startswith(b"data: {") and part.endswith(b"}\n\n") for part in parts)


@pytest.mark.parametrize("turns", [lambda count: False, lambda count: count % 3 == 0], ids=["never", "sometimes"])
def test_nothing_is_lost_or_swapped_where_a_reader_is_slow_now_and_then(start_server, monkeypatch, turns):
    count = iter(range(1 << 20))
    ready = ChunkWriter.ready.fget
    monkeypatch.setattr(ChunkWriter, "ready", property(lambda self: ready(self) and turns(next(count))))
    with start_server(sim=SLOW) as running:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: text_of(running.stream(COMPLETIONS, **LONG)), range(8)))
        assert answers == [("abcdefg" * 5)[:30]] * 8


def test_a_reply_that_cannot_be_written_harms_no_other(start_server, monkeypatch):
    chunks = Rendering.chunks

    def broken(self, updates):
        updates = list(updates)
        if self._body.user == "unlucky" and len(updates[0].sample.token_ids) > 5:
            raise ZeroDivisionError("a defect")
        return chunks(self, updates)

    monkeypatch.setattr(Rendering, "chunks", broken)
    with start_server(sim=SLOW) as running, concurrent.futures.ThreadPoolExecutor(4) as pool:
        others = [pool.submit(running.stream, COMPLETIONS, **LONG) for _ in range(3)]
        with pytest.raises(httpx.RemoteProtocolError):  # the reply breaks off, as it had begun
            running.stream(COMPLETIONS, **LONG, user="unlucky")
        assert [text_of(each.result()) for each in others] == [("abcdefg" * 5)[:30]] * 3
        running.wait(lambda: running.llm.num_open == 0)
        assert text_of(running.stream(COMPLETIONS, **LONG)) == ("abcdefg" * 5)[:30]


BODIES = {
    COMPLETIONS: {"prompt": "abc", "max_tokens": 5, "ignore_eos": True},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 5, "ignore_eos": True},
    "/v1/responses": {"input": "abc", "max_output_tokens": 5},
    "/v1/messages": {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 5, "model": "sim"},
    "/v1/embeddings": {"input": "abc"},
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_leaves_no_work_to_the_cycle_collector(start_server, path, stream):
    if stream and path == "/v1/embeddings":
        pytest.skip("embeddings do not stream")
    with start_server() as running, running.client() as client:

        def ask(times):
            for _ in range(times):
                reply = client.post(path, json=BODIES[path] | ({"stream": True} if stream else {}))
                assert reply.status_code == 200, reply.text
            running.wait(lambda: running.app.num_exchanges == 0)

        ask(2)
        gc.collect()
        gc.disable()
        try:
            ask(10)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            left = Counter(type(each).__qualname__ for each in gc.garbage if type(each).__module__.startswith("octavo"))
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert sum(left.values()) < 10, left  # a request's own objects would be there ten times
