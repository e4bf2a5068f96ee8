"""What /metrics says agrees with what was asked of the server, under our names and vLLM's."""

from __future__ import annotations

import os

import pytest

from octavo.sim import SimOptions
from tests.observability.exposition import Page

PER_REQUEST = (
    "time_to_first_token_seconds", "request_time_per_output_token_seconds", "e2e_request_latency_seconds",
    "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
    "request_inference_time_seconds", "request_prompt_tokens", "request_generation_tokens", "request_params_n",
    "request_params_max_tokens",
)  # fmt: skip
STEP = 0.02


@pytest.fixture(scope="module")
def page(start_server):
    """After two requests one after the other, of 30 and 40 prompt tokens, 10 and 2 x 6 tokens generated."""
    with start_server(sim=SimOptions(step_seconds=STEP), enable_prefix_caching=False) as running:
        running.post("/v1/completions", prompt=list(range(30)), max_tokens=10, ignore_eos=True)
        running.post("/v1/completions", prompt=list(range(40)), max_tokens=6, n=2, ignore_eos=True)
        running.wait(lambda: running.llm.stats.num_running == 0)
        yield Page(running.get("/metrics").text)


@pytest.mark.parametrize("prefix", ["octavo", "vllm"])
def test_each_request_counts_once_in_each_histogram(page, prefix):
    assert {name: page.value(f"{prefix}:{name}_count") for name in PER_REQUEST} == dict.fromkeys(PER_REQUEST, 2)
    assert page.value(f"{prefix}:request_prompt_tokens_sum") == 70
    assert page.value(f"{prefix}:request_generation_tokens_sum") == 22
    assert page.value(f"{prefix}:request_params_n_sum") == 3
    assert page.value(f"{prefix}:request_params_max_tokens_sum") == 16


def test_the_parts_of_a_requests_time_add_up(page):
    parts = ("request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds")
    total = page.value("octavo:e2e_request_latency_seconds_sum")
    assert sum(page.value(f"octavo:{part}_sum") for part in parts) == pytest.approx(total)
    inference = page.value("octavo:request_inference_time_seconds_sum")
    assert inference == pytest.approx(total - page.value("octavo:request_queue_time_seconds_sum"))


def test_gaps_between_tokens_are_those_of_steps(page):
    assert page.value("octavo:inter_token_latency_seconds_count") == 9 + 2 * 5
    mean = page.value("octavo:inter_token_latency_seconds_sum") / 19
    assert STEP * 0.8 < mean < STEP * 5
    assert page.value("octavo:inter_token_latency_seconds_bucket", le="0.01") == 0


def test_steps_and_their_tokens(page):
    steps = page.value("octavo:steps_total")
    assert page.value("octavo:step_time_seconds_count") == page.value("octavo:iteration_tokens_total_count") == steps
    # every prompt token is computed once, and every generated one but each sample's last
    assert page.value("octavo:iteration_tokens_total_sum") == pytest.approx(70 + 9 + 2 * 5, abs=1)
    assert page.value("octavo:step_time_seconds_sum") > 0.8 * STEP * (steps - 2)


def test_histograms_are_cumulative(page):
    for name, kind in page.kinds.items():
        if kind != "histogram":
            continue
        buckets = page.samples[name + "_bucket"]
        ordered = sorted((float(dict(key)["le"]), count) for key, count in buckets.items())
        counts = [count for _, count in ordered]
        assert counts == sorted(counts) and ordered[-1] == (float("inf"), page.value(name + "_count")), name


def test_facts_and_state(page):
    for prefix in ("octavo", "vllm"):
        labels = {"block_size": "16", "num_gpu_blocks": "4096", "enable_prefix_caching": "False"}
        assert page.value(f"{prefix}:cache_config_info", **labels) == 1
    states = {dict(key)["state"]: value for key, value in page.samples["octavo:state"].items()}
    assert states.pop("ready") == 1 and set(states.values()) == {0}


def test_the_process(page):
    assert page.value("process_resident_memory_bytes") > 10 << 20
    assert 0 < page.value("process_open_fds") < 1000
    assert page.value("process_cpu_seconds_total") > 0.1
    assert abs(page.value("process_start_time_seconds") - os.stat("/proc/self").st_ctime) < 3600


def test_no_client_makes_a_label(start_server):
    with start_server() as running, running.client() as client:
        before = Page(running.get("/metrics").text)
        for name in ("zebra", 'zebra"} 1\n', "x" * 5000):
            client.post("/v1/completions", json={"model": name, "prompt": "x", "user": name, "cache_salt": name})
            client.get("/zebra/" + name.replace("\n", ""))
            client.request("ZEBRA", "/v1/models")
        text = running.get("/metrics").text
        assert "zebra" not in text.lower() and "xxx" not in text
        after = Page(text)
        assert after.kinds == before.kinds
        added = sum(len(series) for series in after.samples.values()) - sum(map(len, before.samples.values()))
        assert added <= 4  # replies by route and status
