"""Octavo and vLLM on one card in one run: offline workloads, and the same client against both servers.

    python benchmarks/gpu_peers.py --json OUT.json [--peer-path SITE] [--repeat 3] [--workloads a,b]
        [--rates inf:1000,40:1000,20:1000,10:1000] [--quantization fp8] [--kv-cache-dtype fp8] [--only offline|http]
        [--profile in512_out512_x512:512]

vLLM must be importable with SITE on the path (where it is installed apart), or in this environment. One engine runs
after the other, each in processes of its own, both with defaults, Llama 3.1 8B's shape and random weights. `ratio` is
vLLM's time over Octavo's: above 1, Octavo is faster. Over HTTP, requests are ShareGPT-like with token ids for prompts;
a synthetic tokenizer gives each id some letters, so that both servers make text of what they stream. RATE:COUNT sends
COUNT of them at RATE a second.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from octavo.bench.record import environment  # noqa: E402
from octavo.bench.workloads import WORKLOADS  # noqa: E402

START_LIMIT_S = 300


class NotStartedError(Exception):
    """A server that ended or took too long; its last words."""


def synthetic_tokenizer(folder: Path, size: int = 128_000) -> None:
    """A byte-level BPE tokenizer of `size` tokens: the bytes, then words of two, three and four letters."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    for length in (2, 3, 4):
        for word in itertools.product(letters, repeat=length):
            if len(tokens) == size:
                break
            tokens.append("".join(word))
            merges.append(("".join(word[:-1]), word[-1]))
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_{i}|>" for i in range(254))]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": names[0], "eos_token": names[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"clean_up_tokenization_spaces": False}))


def run(command: list[str], environ: dict[str, str], log: Path) -> None:
    """Run to the end; its output goes to a log, its last lines here if it fails."""
    with log.open("wb") as file:
        code = subprocess.call(command, env=environ, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
    if code != 0:
        print(log.read_text(errors="replace")[-3000:], flush=True)
        raise SystemExit(f"{command[:4]} ended with {code}")


def peer_environ(arguments: argparse.Namespace) -> dict[str, str]:
    path = [arguments.peer_path] if arguments.peer_path else []
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    sampler = {"VLLM_USE_FLASHINFER_SAMPLER": "0"}  # FlashInfer is not installed
    return os.environ | quiet | sampler | {"PYTHONPATH": os.pathsep.join(path)}


def peer_options(arguments: argparse.Namespace) -> dict[str, str]:
    names = ("quantization", "kv_cache_dtype")
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def offline(arguments: argparse.Namespace, folder: Path, logs: Path) -> dict[str, Any]:
    """Seconds of each workload with each engine."""
    names = arguments.workloads
    ours, theirs = logs / "octavo.json", logs / "vllm.json"
    command = [sys.executable, "benchmarks/gpu_check.py", "--only", "bench", "--json", str(ours)]
    command += ["--repeat", str(arguments.repeat), "--workloads", names, "--profile", arguments.profile]
    for name, value in peer_options(arguments).items():
        command += [f"--{name.replace('_', '-')}", value]
    run(command, dict(os.environ), logs / "octavo.log")
    result: dict[str, Any] = {"octavo": json.loads(ours.read_text())["bench"]}
    print("octavo", {name: result["octavo"][name]["all_s"] for name in names.split(",")}, flush=True)
    if not arguments.without_peer:
        command = [sys.executable, "benchmarks/vllm_offline.py", str(folder), str(theirs), str(arguments.peer_repeat)]
        run([*command, names, json.dumps(peer_options(arguments))], peer_environ(arguments), logs / "vllm.log")
        result["vllm"] = json.loads(theirs.read_text())
        result["ratio"] = {
            name: round(result["vllm"][name]["s"] / result["octavo"][name]["s"], 3) for name in names.split(",")
        }
        result["ratio"]["start"] = round(result["vllm"]["startup_s"] / result["octavo"]["process_to_ready_s"], 2)
        print("ratio", result["ratio"], flush=True)
        if arguments.profile:
            result["vllm"] |= peer_profile(arguments, folder, logs)
    return result


def peer_profile(arguments: argparse.Namespace, folder: Path, logs: Path) -> dict[str, Any]:
    """Where vLLM's time goes: in a start of its own, within the process that the profiler sees."""
    out = logs / "vllm-profile.json"
    command = [sys.executable, "benchmarks/vllm_offline.py", str(folder), str(out), "0", arguments.workloads]
    command += [json.dumps(peer_options(arguments)), "--profile", arguments.profile]
    run(command, peer_environ(arguments) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}, logs / "vllm-profile.log")
    return {name: value for name, value in json.loads(out.read_text()).items() if name.startswith("profile")}


@contextmanager
def served(command: list[str], environ: dict[str, str], port: int, log: Path) -> Iterator[float]:
    """A server while it runs; yields the seconds until it was ready."""
    begin = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=environ, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True
        )
    try:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
                    if reply.status == 200:
                        break
            except OSError:
                pass
            if process.poll() is not None or time.monotonic() - begin > START_LIMIT_S:
                raise NotStartedError(log.read_text(errors="replace")[-3000:])
            time.sleep(0.1)
        yield time.monotonic() - begin
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def http(arguments: argparse.Namespace, folder: Path, logs: Path, record: dict[str, Any]) -> bool:
    """What one client sees of each server, at each rate; saved in the record after each rate. Whether both ran."""
    result: dict[str, Any] = record.setdefault("http", {})
    engines = ["octavo"] if arguments.without_peer else ["vllm", "octavo"]  # first the one whose start may fail
    for engine in engines:
        port, log = free_port(), logs / f"{engine}-server.log"
        command, environ = server(arguments, engine, folder, port)
        try:
            with served(command, environ, port, log) as seconds:
                found = result[engine] = {"ready_s": seconds}
                for rate, count in arguments.rates:
                    found[f"rate {rate}"] = client(port, rate, count, logs)
                    print(engine, rate, json.dumps(found[f"rate {rate}"]), flush=True)
                    save(arguments.json, record)
        except NotStartedError as error:
            print(engine, "did not start:", error, flush=True)
            result[engine] = {"not_started": str(error).splitlines()[-1:]}
            save(arguments.json, record)
    return all("not_started" not in found for found in result.values())


def server(arguments: argparse.Namespace, engine: str, folder: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """The command that starts an engine's server, and its environment."""
    options = ["--load-format", "dummy", "--max-model-len", "8192", "--port", str(port), "--host", "127.0.0.1"]
    for name, value in peer_options(arguments).items():
        options += [f"--{name.replace('_', '-')}", value]
    if engine == "octavo":
        options += arguments.server_options.split()
        return [sys.executable, "-m", "octavo.cli", "serve", str(folder), *options], dict(os.environ)
    module = "vllm.entrypoints.openai.api_server"
    command = [sys.executable, "-m", module, "--model", str(folder), *options, "--disable-uvicorn-access-log"]
    return command, peer_environ(arguments)


def client(port: int, rate: str, count: int, logs: Path) -> dict[str, Any]:
    """`octavo bench serve` in a process of its own; its figures without each request's.

    Each rate has a salt, so that it does not find in the prefix cache what the one before it sent.
    """
    out = logs / f"client-{port}-{rate}.json"
    command = [sys.executable, "-m", "octavo.cli", "bench", "serve", "--base-url", f"http://127.0.0.1:{port}"]
    command += ["--workload", "sharegpt_1000", "--num-prompts", str(count), "--request-rate", rate]
    salt = json.dumps({"cache_salt": f"rate-{rate}"})
    command += ["--vocab-size", "128256", "--extra-body", salt, "--json", str(out)]
    run(command, dict(os.environ), logs / f"client-{port}-{rate}.log")
    figures = json.loads(out.read_text())
    wanted = ("completed", "failed", "duration_s", "output_tokens_per_s", "ttft_ms", "tpot_ms", "itl_ms", "e2el_ms")
    return {name: figures[name] for name in wanted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=["offline", "http"])
    parser.add_argument("--peer-path", help="where vLLM is installed, if not in this environment")
    parser.add_argument("--without-peer", action="store_true", help="Octavo alone")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--peer-repeat", type=int, default=3)
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--rates", default="inf:1000,40:1000,20:1000,10:1000")
    parser.add_argument("--server-options", default="", help="further options of octavo serve, in one string")
    parser.add_argument("--quantization")
    parser.add_argument("--kv-cache-dtype")
    parser.add_argument("--profile", default="", help="workload:requests,..., run once more under a profiler, both")
    parser.add_argument("--logs", type=Path, help="a folder to keep the engines' logs in")
    arguments = parser.parse_args()
    arguments.rates = [(rate, int(count)) for rate, count in (part.split(":") for part in arguments.rates.split(","))]
    from gpu_check import LLAMA_8B

    record: dict[str, Any] = environment()
    record["command"] = "python benchmarks/gpu_peers.py " + " ".join(sys.argv[1:])
    with tempfile.TemporaryDirectory() as scratch:
        folder, logs = Path(scratch) / "llama-8b", arguments.logs or Path(scratch)
        folder.mkdir()
        logs.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(LLAMA_8B))
        synthetic_tokenizer(folder)
        if arguments.only != "http":
            record["offline"] = offline(arguments, folder, logs)
            save(arguments.json, record)
        ran = arguments.only == "offline" or http(arguments, folder, logs, record)
    sys.exit(0 if ran else 1)


def save(path: Path | None, record: dict[str, Any]) -> None:
    """So that a run that is cut off leaves what it has."""
    if path is not None:
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
