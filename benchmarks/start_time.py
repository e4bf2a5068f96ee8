"""Where a server's start goes: `python benchmarks/start_time.py [MODEL] [--repeat 3] [--json FILE] [-- serve flags]`.

`octavo serve` is started and ended a few times: seconds until it starts the engine's process, until it listens to
requests, and the engine's phases as it prints them. Beside that, what importing the engine takes, by package, from
Python's own `-X importtime`: these seconds are spent before any phase.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from octavo.bench.record import environment

ENGINE = ("octavo.engine_process", "octavo.engine.load")
GPU = ("octavo.runner.cuda", "octavo.kernels.triton.warm_up")
_LINE = re.compile(r"import time:\s*(\d+) \|\s*(\d+) \|(\s*)(\S+)")


def imports(modules: tuple[str, ...]) -> dict[str, Any]:
    """Seconds of importing modules in a fresh process, and of each package's own files among them."""
    code = "import " + ", ".join(modules)
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
    seconds = time.perf_counter() - begun
    told = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    own: Counter[str] = Counter()
    for line in told.stderr.splitlines():
        found = _LINE.match(line)
        if found:
            own[found[4].split(".")[0]] += int(found[1])
    packages = {name: round(micro / 1e6, 3) for name, micro in own.most_common(12)}
    return {"modules": list(modules), "seconds": round(seconds, 2), "own_seconds_by_package": packages}


def serve(model: str, flags: list[str]) -> dict[str, Any]:
    """One start: when the engine's process was there, and when requests are taken."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "octavo", "serve", model, "--port", "0", "-v", *flags]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    spawned, lines = 0.0, []
    while not spawned and process.poll() is None:
        if psutil.Process(process.pid).children():
            spawned = time.perf_counter() - begun
        time.sleep(0.002)
    for line in process.stderr or ():
        lines.append(line.rstrip())
        if line.startswith("ready after"):
            break
    ready = time.perf_counter() - begun
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    if process.returncode:
        sys.exit("\n".join(lines[-5:]))
    return {"engine_started_s": round(spawned, 2), "ready_s": round(ready, 2), "told": lines[-6:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="SmolLM2-135M-Instruct")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--gpu", action="store_true", help="also import what a GPU needs")
    options, flags = parser.parse_known_args()
    starts = [serve(options.model, [flag for flag in flags if flag != "--"]) for _ in range(options.repeat)]
    report = {
        **environment(),
        "command": " ".join(["python", "benchmarks/start_time.py", *sys.argv[1:]]),
        "python_bytecode_cached": not os.environ.get("PYTHONDONTWRITEBYTECODE"),
        "ready_s": statistics.median(start["ready_s"] for start in starts),
        "starts": starts,
        "imports": imports(ENGINE + GPU if options.gpu else ENGINE),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
