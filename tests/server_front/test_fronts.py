"""Several front processes over one engine: one page of metrics, deaths that stay where they happen, an orderly end."""

from __future__ import annotations

import signal
import time

import httpx
import psutil

from octavo.config import ServerOptions
from octavo.engine.fronts import split
from octavo.engine.messages import first_handle, front_of
from octavo.request import EngineStats, Finished, Started, StepFigures, StepOutputs
from octavo.server.metrics_merge import counted, merge
from octavo.sim import SimOptions
from tests.patience import BUSY

TWO = ServerOptions(port=0, api_server_count=2, drain_timeout=20.0)
SLOW = SimOptions(step_seconds=0.01)
LONG = {"prompt": "abcdefgh", "max_tokens": 400, "ignore_eos": True, "stream": True}


def ask(url, **body):
    return httpx.post(f"{url}/v1/completions", json={"prompt": "hello", "max_tokens": 5, **body}, timeout=30)


def metrics(url):
    lines = [line for line in httpx.get(f"{url}/metrics", timeout=30).text.splitlines() if not line.startswith("#")]
    return {key: float(value) for key, _, value in (line.rpartition(" ") for line in lines)}


def named(values, name):
    return sum(value for key, value in values.items() if key.partition("{")[0] == name)


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds * BUSY
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def fronts_of(process):
    return [child for child in psutil.Process(process.pid).children() if "octavo.server.front" in command(child)]


def command(child):
    """None of a process that has just ended."""
    try:
        return child.cmdline()
    except (psutil.ZombieProcess, psutil.NoSuchProcess):
        return []


def engine_of(process):
    return next(child for child in psutil.Process(process.pid).children() if "octavo.sim" in child.cmdline())


def test_any_front_tells_of_all_and_deaths_stay_where_they_happen(process_server):
    process, url = process_server(sim=SLOW, options=TWO)
    assert len(fronts_of(process)) == 2
    for _ in range(8):
        assert ask(url).json()["choices"][0]["text"] == "hello"
    values = metrics(url)
    assert named(values, "octavo:request_success_total") == 8
    assert named(values, "octavo:generation_tokens_total") == 40
    assert named(values, "octavo:step_time_seconds_count") == 40  # each step once

    opened = {}  # a stream at each front, told apart by whose connection it is
    with httpx.Client(base_url=url, timeout=30, limits=httpx.Limits(max_keepalive_connections=0)) as client:
        streams = [client.send(client.build_request("POST", "/v1/completions", json=LONG), stream=True)
                   for _ in range(12)]  # fmt: skip
        victim, other = fronts_of(process)
        for front in (victim, other):
            opened[front.pid] = sum(each.status == "ESTABLISHED" and each.laddr.port == int(url.rpartition(":")[2])
                                    for each in front.net_connections("tcp"))  # fmt: skip
        assert sum(opened.values()) == 12
        victim.kill()
        ends = []
        for stream in streams:
            try:
                ends.append(stream.read().endswith(b"[DONE]\n\n"))
            except httpx.TransportError:
                ends.append(False)
    assert ends.count(False) == opened[victim.pid]
    until(lambda: len(fronts_of(process)) == 2 and named(metrics(url), "octavo:num_requests_running") == 0)
    values = metrics(url)
    assert named(values, "octavo:request_success_total") >= 8 + opened[other.pid]
    assert named(values, "octavo:num_free_pages") == named(values, "octavo:num_pages")
    assert named(values, "octavo:num_requests_open") == 0

    engine_of(process).kill()
    until(lambda: httpx.get(f"{url}/ready").status_code == 503 or named(metrics(url), "octavo:engine_restarts_total"))
    until(lambda: all(httpx.get(f"{url}/ready").status_code == 200 for _ in range(8)))
    assert all(ask(url).status_code == 200 for _ in range(4))

    children = psutil.Process(process.pid).children(recursive=True)
    with httpx.stream("POST", f"{url}/v1/completions", json={**LONG, "max_tokens": 100}, timeout=30) as stream:
        process.send_signal(signal.SIGTERM)
        assert stream.read().endswith(b"[DONE]\n\n")
    assert process.wait(20 * BUSY) == 0
    assert not psutil.wait_procs(children, 5 * BUSY)[1]


def test_a_front_that_hangs_is_replaced(process_server):
    options = ServerOptions(port=0, api_server_count=2, step_timeout=8.0)
    process, url = process_server(sim=SLOW, options=options)
    hung, other = fronts_of(process)
    hung.suspend()
    until(lambda: not hung.is_running() or hung.status() == psutil.STATUS_ZOMBIE, 15)
    until(lambda: len(fronts_of(process)) == 2)
    assert other in fronts_of(process)
    until(lambda: all(httpx.get(f"{url}/ready", timeout=5).status_code == 200 for _ in range(8)))
    assert all(ask(url).status_code == 200 for _ in range(8))


def test_nothing_survives_a_killed_keeper(process_server):
    process, url = process_server(sim=SLOW, options=TWO)
    assert ask(url).status_code == 200
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3
    process.kill()
    assert not psutil.wait_procs(children, 5 * BUSY)[1]


def test_a_step_is_split_by_the_handles_owners():
    mine, theirs = first_handle(1), first_handle(2) + 5
    assert (front_of(mine), front_of(theirs), front_of(7)) == (1, 2, 0)
    stats = EngineStats(num_steps=3, last_step=StepFigures(0.1, 4))
    step = StepOutputs([mine, theirs, mine], [0, 1, 0], [10, 11, 12], [Finished(theirs, 1, "stop")],
                       [Started(mine, 2, 1.0)], stats=stats)  # fmt: skip
    parts = dict(split(step))
    assert parts[1].tokens == [10, 12] and parts[2].tokens == [11]
    assert parts[1].started and not parts[2].started
    assert parts[2].finished == step.finished and not parts[1].finished
    assert [part.stats.last_step.num_tokens for part in parts.values()] == [4, 0]
    assert all(part.stats.num_steps == 3 for part in parts.values())


OWN = """# TYPE octavo:request_success_total counter
octavo:request_success_total{r="a"} 2
# TYPE octavo:steps_total counter
octavo:steps_total 7
# TYPE octavo:num_requests_open gauge
octavo:num_requests_open 1
# TYPE octavo:num_pages gauge
octavo:num_pages 64
# TYPE octavo:t histogram
octavo:t_bucket{le="1"} 1
octavo:t_sum 0.5
"""
OTHER = OWN.replace('{r="a"} 2', '{r="b"} 5').replace("steps_total 7", "steps_total 9").replace("_sum 0.5", "_sum 0.25")


def test_pages_merge_by_what_a_metric_means():
    retired = counted(OTHER, counted(OWN))
    lines = merge(OWN, [OTHER], retired).splitlines()
    assert 'octavo:request_success_total{r="a"} 4' in lines
    assert lines.index('octavo:request_success_total{r="b"} 10') == 2
    assert "octavo:steps_total 9" in lines
    assert "octavo:num_requests_open 2" in lines  # what is no more has none open
    assert "octavo:num_pages 64" in lines
    assert "octavo:t_sum 1.5" in lines
