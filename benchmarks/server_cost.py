"""CPU time that the server spends on one streamed token: `python benchmarks/server_cost.py [--json FILE]`.

The real server (its own process) streams from a simulated engine (another one) to this client, which only counts. What
is reported is the server process's user and system time, from the first token of the last stream that starts to the
end, divided by the tokens sent in that time; the engine's process is reported beside it. CPU time is not wall time, but
shared caches and a busy machine still show in it: of several rounds the least counts, and all are kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import msgspec
import psutil
import uvloop

from octavo import __version__
from octavo.config import EngineConfig, ServerOptions
from octavo.sim import SimOptions, write_sim_model
from octavo.sim.serve import SimServe

PROMPT = "The quick brown fox jumps over the lazy dog, and "
TARGET_US = 35.0


@dataclass
class Tally:
    """What all clients have seen."""

    streams: int
    started: int = 0
    tokens: int = 0
    ended: int = 0
    all_started: asyncio.Event = field(default_factory=asyncio.Event)
    all_ended: asyncio.Event = field(default_factory=asyncio.Event)


class Client(asyncio.Protocol):
    """Sends one request and counts events; a text event is one token, as the simulated tokens are one byte each."""

    def __init__(self, head: bytes, tally: Tally):
        self._head, self._tally, self._begun, self._tail = head, tally, False, b""

    def connection_made(self, transport):
        self._transport = transport
        transport.write(self._head)

    def data_received(self, data):
        tally = self._tally
        tokens = data.count(b'"content":"') + data.count(b'"text":"')
        tally.tokens += tokens
        if tokens and not self._begun:
            self._begun = True
            tally.started += 1
            if tally.started == tally.streams:
                tally.all_started.set()
        window = self._tail + data
        self._tail = window[-16:]
        if b"[DONE]" in window:
            self._transport.close()
            tally.ended += 1
            if tally.ended == tally.streams:
                tally.all_ended.set()

    def connection_lost(self, error):
        if error is not None:
            raise error


def head_of(path: str, body: dict) -> bytes:
    data = json.dumps(body).encode()
    lines = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return lines.encode() + data


async def one_round(url: str, server: psutil.Process, route: str, streams: int, tokens: int) -> dict:
    host, port = url.removeprefix("http://").split(":")
    body: dict = {"model": "sim", "stream": True, "max_tokens": tokens, "ignore_eos": True}
    if route == "chat":
        head = head_of("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": PROMPT}]})
    else:
        head = head_of("/v1/completions", {**body, "prompt": PROMPT})
    tally = Tally(streams)
    engine = server.children()[0]
    loop = asyncio.get_running_loop()
    for _ in range(streams):
        await loop.create_connection(lambda: Client(head, tally), host, int(port))
    await tally.all_started.wait()
    seen, before, engine_before, start = tally.tokens, server.cpu_times(), engine.cpu_times(), time.perf_counter()
    await tally.all_ended.wait()
    seconds = time.perf_counter() - start
    after, engine_after, counted = server.cpu_times(), engine.cpu_times(), tally.tokens - seen
    user, system = after.user - before.user, after.system - before.system
    engine_cpu = engine_after.user + engine_after.system - engine_before.user - engine_before.system
    return {
        "us_per_token": round(1e6 * (user + system) / counted, 2),
        "user_us": round(1e6 * user / counted, 2),
        "system_us": round(1e6 * system / counted, 2),
        "engine_us": round(1e6 * engine_cpu / counted, 2),
        "tokens": counted,
        "tokens_per_second": round(counted / seconds),
    }


def measure(route: str, streams: int, tokens: int, step_ms: float, rounds: int) -> dict:
    """Start a server, warm it up, measure `rounds` times."""
    with tempfile.TemporaryDirectory() as folder:
        config = EngineConfig.of(
            model="sim", tokenizer=str(write_sim_model(Path(folder))), max_num_seqs=streams, max_model_len=4096
        )
        pages = streams * (-(-(tokens + 200) // 16))
        sim = SimOptions(step_seconds=step_ms / 1000, num_pages=max(256, pages))
        process = subprocess.Popen(
            [sys.executable, "-m", "octavo.sim.serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            what = SimServe(engine=config, server=ServerOptions(port=0, log_level="warning"), sim=sim)
            process.stdin.write(msgspec.json.encode(what).decode() + "\n")
            process.stdin.flush()
            url = process.stdout.readline().strip()
            if not url:
                raise SystemExit("the server did not start")
            server = psutil.Process(process.pid)
            uvloop.run(one_round(url, server, route, streams, 32))
            results = [uvloop.run(one_round(url, server, route, streams, tokens)) for _ in range(rounds)]
            memory = server.memory_info().rss
        finally:
            process.terminate()
            process.wait(20)
    best = min(results, key=lambda result: result["us_per_token"])
    return {"route": route, "streams": streams, "step_ms": step_ms, **best, "rss_mib": memory >> 20, "rounds": results}


def machine() -> dict:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0].split(":")[1].strip() if names else platform.processor(),
        "cores": len(psutil.Process().cpu_affinity()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "octavo": __version__,
        **{name: version(name) for name in ("uvicorn", "uvloop", "httptools", "pyzmq", "msgspec", "orjson")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 500])
    parser.add_argument("--tokens", type=int, default=200, help="tokens of each stream")
    parser.add_argument("--step-ms", type=float, default=25.0, help="least time of the engine's step")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    results = []
    for route in ("completions", "chat"):
        for streams in args.streams:
            result = measure(route, streams, args.tokens, args.step_ms, args.rounds)
            results.append(result)
            print(
                f"{route:12} {streams:4} streams: {result['us_per_token']:6.1f} µs a token"
                f" (user {result['user_us']}, system {result['system_us']}; engine {result['engine_us']}),"
                f" {result['tokens_per_second']:,} tokens/s"
            )
    if args.json:
        content = {
            "what": "server CPU per streamed token, least of the rounds",
            "target_us": TARGET_US,
            "command": "python benchmarks/server_cost.py " + " ".join(sys.argv[1:]),
            "machine": machine(),
            "results": results,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
