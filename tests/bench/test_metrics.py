"""What the numbers of a load test mean."""

from __future__ import annotations

import pytest

from octavo.bench.metrics import RequestTimes, parse_goodput, peak_concurrency, spread, summarize
from octavo.errors import ConfigError


def times(start: float, ttft: float, latency: float, output_len: int, **more) -> RequestTimes:
    return RequestTimes(input_len=10, start=start, ttft=ttft, latency=latency, output_len=output_len, **more)


def test_tpot_leaves_the_first_token_out():
    assert times(0, 0.5, 1.5, 11).tpot == pytest.approx(0.1)
    assert times(0, 0.5, 0.5, 1).tpot is None


def test_summary_counts_failures_apart():
    requests = [times(0.0, 0.2, 1.2, 11, itl=[0.1] * 10), times(0.0, 0.4, 2.0, 5), times(0.0, 0, 0, 0, error="gone")]
    summary = summarize(requests, 2.0)
    assert summary["completed"] == 2
    assert summary["failed"] == 1
    assert summary["output_tokens_per_s"] == pytest.approx(8.0)
    assert summary["total_tokens_per_s"] == pytest.approx(18.0)
    assert summary["ttft_ms"]["mean"] == pytest.approx(300.0)
    assert summary["itl_ms"]["p50"] == pytest.approx(100.0)


def test_goodput_counts_requests_that_keep_every_bound():
    requests = [times(0.0, 0.2, 1.2, 11), times(0.0, 0.4, 2.0, 5)]
    summary = summarize(requests, 2.0, parse_goodput(["ttft:300", "tpot:150"]))
    assert summary["good_requests_per_s"] == pytest.approx(0.5)


@pytest.mark.parametrize("bound", ["ttft", "ttft:", "ttft:-1", "speed:3", "ttft:nan", "ttft:inf"])
def test_goodput_refuses_what_it_cannot_read(bound):
    with pytest.raises(ConfigError, match="goodput"):
        parse_goodput([bound])


def test_concurrency_is_of_requests_open_at_one_time():
    requests = [times(0.0, 0.1, 1.0, 2), times(0.5, 0.1, 1.0, 2), times(1.0, 0.1, 1.0, 2)]
    assert peak_concurrency(requests) == 2


def test_spread_of_nothing_is_zero():
    assert spread([]) == {"mean": 0.0, "p50": 0.0, "p99": 0.0, "min": 0.0, "max": 0.0}
