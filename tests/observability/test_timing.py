"""The timing object: only on demand, in every kind of reply, and its parts add up."""

from __future__ import annotations

import pytest

from octavo.sim import SimOptions

CHAT = {"messages": [{"role": "user", "content": "how long"}], "max_tokens": 8, "ignore_eos": True}
PLAIN = {"prompt": ["one", "and another"], "max_tokens": 8, "ignore_eos": True}
ROUTES = [("/v1/chat/completions", CHAT, 1), ("/v1/completions", PLAIN, 2)]


@pytest.fixture(scope="module")
def slow(start_server):
    with start_server(sim=SimOptions(step_seconds=0.01)) as running:
        yield running


def check(timing, count):
    assert len(timing["requests"]) == count
    for entry in timing["requests"]:
        parts = entry["queue_time"] + entry["prefill_time"] + entry["decode_time"]
        assert parts == pytest.approx(entry["total_time"], abs=1e-5)
        assert entry["time_to_first_token"] == pytest.approx(entry["queue_time"] + entry["prefill_time"], abs=1e-5)
        assert entry["decode_time"] > 6 * 0.008 and entry["completion_tokens"] == 8
        assert entry["time_per_output_token"] == pytest.approx(entry["decode_time"] / 7, abs=1e-5)
        assert entry["prompt_tokens"] > 0 and entry["cached_tokens"] >= 0


@pytest.mark.parametrize(("route", "body", "count"), ROUTES)
def test_whole_replies(slow, route, body, count):
    assert "timing" not in slow.post(route, **body)
    check(slow.post(route, **body, timing=True)["timing"], count)
    with slow.client(headers={"x-octavo-timing": "1"}) as client:
        check(client.post(route, json=body).json()["timing"], count)


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize(("route", "body", "count"), ROUTES)
def test_streams_end_with_it(slow, route, body, count, usage):
    options = {"stream_options": {"include_usage": True}} if usage else {}
    events = slow.stream(route, **body, **options, timing=True)
    assert all("timing" not in event for event in events[:-1])
    last = events[-1]
    assert last["choices"] == [] and ("usage" in last) == usage
    check(last["timing"], count)


def test_the_header_says_no(slow):
    with slow.client(headers={"x-octavo-timing": "0"}) as client:
        assert "timing" not in client.post("/v1/completions", json=PLAIN).json()
