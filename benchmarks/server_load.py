"""Many streams at once for a while: `python benchmarks/server_load.py [--minutes 15] [--json FILE]`.

The real server (its own process, its log at its default level) streams from a simulated engine (another one) to this
client: 1,000 streams, each followed by the next on a new connection as soon as it ends, with 20,000 tokens a second in
all where the machine can. Reported are the server's CPU time for a token, gaps between a stream's tokens as the client
sees them, time to first token, and, every few seconds, memory and descriptors of the server. Afterwards, when all
streams have ended, descriptors, open requests and KV pages must be back where they were, and memory must not have
grown: the report says so, and the exit status is 1 if not.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import numpy as np
import psutil
import uvloop
from server_cost import head_of, machine

from octavo.config import EngineConfig, ServerOptions
from octavo.sim import SimOptions, write_sim_model
from octavo.sim.serve import SimServe

GAUGES = ("octavo:num_pages", "octavo:num_free_pages", "octavo:num_requests_open", "octavo:num_requests_running")
SHORTEST, LONGEST = 200, 600  # tokens of a stream
MOST_GROWTH_MIB = 24  # of memory, from the end of the first quarter to the end, and 5 % of what there is
SPARE_DESCRIPTORS = 8


@dataclass
class Tally:
    """What all clients have seen. Gaps and first tokens are counted in tenths of a millisecond."""

    tokens: int = 0
    ended: int = 0
    open: int = 0
    stopping: bool = False
    failures: Counter = field(default_factory=Counter)
    gaps: Counter = field(default_factory=Counter)
    firsts: Counter = field(default_factory=Counter)
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class Stream(asyncio.Protocol):
    """One request; `then` is called at its end."""

    def __init__(self, head: bytes, tally: Tally, then):
        self._head, self._tally, self._then = head, tally, then
        self._last, self._tail, self._done = 0.0, b"", False

    def connection_made(self, transport):
        self._transport, self._begun = transport, time.perf_counter()
        transport.write(self._head)

    def data_received(self, data):
        tally, now = self._tally, time.perf_counter()
        tokens = data.count(b'"text":"')
        if tokens:
            tally.tokens += tokens
            if self._last:
                tally.gaps[int(1e4 * (now - self._last))] += 1
            else:
                tally.firsts[int(1e4 * (now - self._begun))] += 1
            self._last = now
        window = self._tail + data
        self._tail = window[-16:]
        if b"[DONE]" in window:
            self._done = True
            self._transport.close()

    def connection_lost(self, error):
        if self._done:
            self._tally.ended += 1
        else:
            self._tally.failures[repr(error) if error else self._tail.decode(errors="replace")] += 1
        self._then()


class Load:
    """Keeps so many streams open until told to stop."""

    def __init__(self, host: str, port: int, streams: int, tally: Tally, seed: int):
        self._host, self._port, self._streams, self._tally = host, port, streams, tally
        self._lengths = np.random.default_rng(seed).integers(SHORTEST, LONGEST, 4096).tolist()
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task] = set()

    async def start(self) -> None:
        """Open them, a few at a time."""
        for number in range(self._streams):
            self._tally.open += 1
            self._next()
            if number % 20 == 19:
                await asyncio.sleep(0.02)

    def _next(self) -> None:
        task = asyncio.get_running_loop().create_task(self._connect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        number = next(self._numbers)
        tokens = self._lengths[number % len(self._lengths)]
        body = {"prompt": f"{number} quick brown foxes jump over the lazy dogs, and ", "stream": True}
        head = head_of("/v1/completions", {**body, "max_tokens": tokens, "ignore_eos": True})
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: Stream(head, self._tally, self._ended), self._host, self._port
            )
        except OSError as error:
            self._tally.failures[repr(error)] += 1
            self._ended()

    def _ended(self) -> None:
        if not self._tally.stopping:
            self._next()
            return
        self._tally.open -= 1
        if not self._tally.open:
            self._tally.idle.set()


def gauges(page: str) -> dict[str, int]:
    """Some of /metrics, without the prefix."""
    lines = [line for line in page.splitlines() if line.startswith(GAUGES)]
    values = {line.split("{")[0].removeprefix("octavo:"): line.rsplit(" ", 1)[1] for line in lines}
    return {name: int(float(value)) for name, value in values.items()}


def mean_first_token(page: str) -> float:
    """As the server sees it, from when it has read a request, in ms."""
    found = dict.fromkeys(("sum", "count"), 0.0)
    for line in page.splitlines():
        for part in found:
            if line.startswith(f"octavo:time_to_first_token_seconds_{part}{{"):
                found[part] = float(line.rsplit(" ", 1)[1])
    return round(1e3 * found["sum"] / max(1.0, found["count"]), 1)


def look(server: psutil.Process, engine: psutil.Process, tally: Tally) -> dict:
    mine, theirs = server.cpu_times(), engine.cpu_times()
    return {
        "time": time.perf_counter(),
        "cpu": mine.user + mine.system,
        "engine_cpu": theirs.user + theirs.system,
        "tokens": tally.tokens,
        "rss_mib": round(server.memory_info().rss / (1 << 20), 1),
        "engine_rss_mib": round(engine.memory_info().rss / (1 << 20), 1),
        "descriptors": server.num_fds(),
    }


async def drive(url: str, server: psutil.Process, args: argparse.Namespace) -> dict:
    engine = server.children()[0]
    host, port = url.removeprefix("http://").split(":")
    tally = Tally()
    load = Load(host, int(port), args.streams, tally, args.seed)
    async with httpx.AsyncClient(base_url=url, timeout=30, limits=httpx.Limits(max_keepalive_connections=0)) as client:
        before = look(server, engine, tally)
        await load.start()
        await asyncio.sleep(args.warm_up)
        tally.gaps.clear()
        tally.firsts.clear()
        samples = [look(server, engine, tally)]
        end = time.perf_counter() + 60 * args.minutes
        pages = []
        while (left := end - time.perf_counter()) > 0:
            await asyncio.sleep(min(left, args.every))
            samples.append(look(server, engine, tally))
            page = gauges((await client.get("/metrics")).text)
            pages.append(page["num_pages"] - page["num_free_pages"])
        measured = {"gaps": Counter(tally.gaps), "firsts": Counter(tally.firsts)}
        tally.stopping = True
        await asyncio.wait_for(tally.idle.wait(), 120)
        await asyncio.sleep(3.0)  # the engine tells its figures every second
        after = look(server, engine, tally)
        page = (await client.get("/metrics")).text
        figures = gauges(page) | {"mean_first_token_ms": mean_first_token(page)}
    return report(args, tally, before, samples, after, figures, measured, pages)


def report(args, tally, before, samples, after, figures, measured, pages) -> dict:
    first, last = samples[0], samples[-1]
    tokens, seconds = last["tokens"] - first["tokens"], last["time"] - first["time"]
    later = [sample for sample in samples if sample["time"] >= first["time"] + seconds / 4]
    growth = fitted_growth(later, "rss_mib")
    flat = {
        "memory": growth <= MOST_GROWTH_MIB + 0.05 * first["rss_mib"],
        "descriptors": after["descriptors"] <= before["descriptors"] + SPARE_DESCRIPTORS,
        "pages": figures["num_free_pages"] == figures["num_pages"],
        "requests": figures["num_requests_open"] == figures["num_requests_running"] == 0,
        "no_failures": not tally.failures,
    }
    return {
        "streams": args.streams,
        "minutes": args.minutes,
        "seconds": round(seconds, 2),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds),
        "streams_ended": tally.ended,
        "failures": dict(tally.failures.most_common(5)),
        "us_per_token": round(1e6 * (last["cpu"] - first["cpu"]) / tokens, 2),
        "engine_us_per_token": round(1e6 * (last["engine_cpu"] - first["engine_cpu"]) / tokens, 2),
        "server_cpu_cores": round((last["cpu"] - first["cpu"]) / seconds, 3),
        "gap_ms": spread(measured["gaps"]),
        "first_token_ms": spread(measured["firsts"]),
        "first_token_ms_of_the_server": {"mean": figures["mean_first_token_ms"]},
        "rss_mib": {"before": before["rss_mib"], "first": first["rss_mib"], "last": last["rss_mib"],
                    "peak": max(sample["rss_mib"] for sample in samples), "after": after["rss_mib"],
                    "growth_of_last_three_quarters": round(growth, 2)},
        "engine_rss_mib": {"first": first["engine_rss_mib"], "last": last["engine_rss_mib"]},
        "descriptors": {"before": before["descriptors"], "peak": max(s["descriptors"] for s in samples),
                        "after": after["descriptors"]},
        "pages": {"all": figures["num_pages"], "most_owned": max(pages, default=0),
                  "owned_after": figures["num_pages"] - figures["num_free_pages"]},
        "flat": flat,
        "load_average": round(os.getloadavg()[0], 2),
        "samples": [{"s": round(sample["time"] - first["time"], 1), "tokens": sample["tokens"] - first["tokens"],
                     **{key: sample[key] for key in ("rss_mib", "engine_rss_mib", "descriptors")}}
                    for sample in samples],
    }  # fmt: skip


def fitted_growth(samples: list[dict], key: str) -> float:
    """What a straight line through the samples rises over their time."""
    if len(samples) < 3:
        return 0.0
    times = np.array([sample["time"] for sample in samples])
    slope = np.polyfit(times - times[0], np.array([sample[key] for sample in samples]), 1)[0]
    return float(slope * (times[-1] - times[0]))


def spread(counts: Counter) -> dict:
    """Quantiles in ms of values counted in tenths of a ms."""
    values = sorted(counts)
    reached = np.cumsum([counts[value] for value in values])
    points = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    if not values:
        return {}
    return {
        name: values[min(len(values) - 1, int(np.searchsorted(reached, share * reached[-1])))] / 10
        for name, share in points.items()
    }


def run(args: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_sim_model(folder / "model")
        config = EngineConfig.of(model="sim", tokenizer=str(model), max_num_seqs=args.streams, max_model_len=2048)
        sim = SimOptions(step_seconds=args.step_ms / 1000, num_pages=args.streams * -(-(LONGEST + 100) // 16))
        with open(folder / "log", "w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "octavo.sim.serve"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
            try:
                what = SimServe(engine=config, server=ServerOptions(port=0), sim=sim)
                process.stdin.write(msgspec.json.encode(what).decode() + "\n")
                process.stdin.flush()
                url = process.stdout.readline().strip()
                if not url:
                    raise SystemExit("the server did not start: " + (folder / "log").read_text()[-2000:])
                return uvloop.run(drive(url, psutil.Process(process.pid), args))
            finally:
                process.terminate()
                process.wait(30)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--step-ms", type=float, default=50.0, help="least time of the engine's step")
    parser.add_argument("--warm-up", type=float, default=10.0, help="seconds before anything counts")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks at the server")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    result = run(args)
    print(json.dumps({key: value for key, value in result.items() if key != "samples"}, indent=1))
    if args.json:
        content = {
            "what": "a server under many streams: CPU, gaps, memory, descriptors",
            "command": "python benchmarks/server_load.py " + " ".join(sys.argv[1:]),
            "machine": machine(),
            "result": result,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0 if all(result["flat"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
