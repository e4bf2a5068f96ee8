"""What it costs to keep preempted sequences' pages on the host: `python benchmarks/gpu_swap.py --json OUT.json`.

Pages of Llama 3.1 8B's shape (64 tokens, 8 MiB in 64 tensors), 15 at a time, as a sequence of 940 tokens has: GB/s to
the host and back, whether what comes back is what went, the time until the host's memory is there, and the longest
that a small launch took meanwhile, against the longest without.

What a workload gains: `octavo bench throughput` with `--swap-space 0` and without.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from octavo.bench.record import environment
from octavo.kernels.triton.swap_pages import PageSwapper
from octavo.runner.swap import HostPages

LAYERS, PAGES, ONE = 32, 64, 15
GOAL = 30.0  # GB/s


def longest_launch(busy: Any, seconds: float) -> float:
    """The longest of small launches, waited for one by one, while `busy()` is true and for at least so long."""
    small, longest, begin = torch.zeros(1, device="cuda"), 0.0, time.perf_counter()
    while busy() or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        small.add_(1)
        torch.cuda.synchronize()
        longest = max(longest, time.perf_counter() - start)
    return longest


def rate(host: HostPages, swap_out: np.ndarray, swap_in: np.ndarray, num_bytes: int) -> float:
    """GB/s of a copy, the best of ten."""
    times = []
    for _ in range(10):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        host.copy(swap_out, swap_in)
        events[1].record()
        torch.cuda.synchronize()
        times.append(events[0].elapsed_time(events[1]) / 1e3)
    return num_bytes / min(times) / 1e9


def measure(gib: float) -> dict[str, Any]:
    device = torch.device("cuda", torch.cuda.current_device())
    caches = [torch.randn(PAGES, 8, 64, 128, device=device, dtype=torch.bfloat16) for _ in range(2 * LAYERS)]
    swapper = PageSwapper(caches)
    slots = int(gib * 2**30) // swapper.slot_bytes
    host = HostPages(slots, swapper, device)
    host.compile()
    alone = longest_launch(lambda: False, 1.0)
    begin = time.perf_counter()
    host.start()
    beside = longest_launch(lambda: host.num_ready < slots and time.perf_counter() - begin < 120, 0.0)
    seconds = time.perf_counter() - begin
    complete = host.num_ready == slots
    pages, places = np.arange(ONE), np.arange(ONE) * (host.num_ready // ONE)
    pairs, none = np.stack([pages, places], 1).astype(np.int32), np.empty((0, 2), np.int32)
    back = np.stack([pages + PAGES // 2, places], 1).astype(np.int32)
    num_bytes = ONE * swapper.slot_bytes
    rates = {"out": rate(host, pairs, none, num_bytes), "in": rate(host, none, back, num_bytes)}
    same = all(torch.equal(cache[:ONE], cache[PAGES // 2 : PAGES // 2 + ONE]) for cache in caches)
    host.close()
    return {
        "page_bytes": swapper.slot_bytes,
        "gb_per_second": rates,
        "same_bytes": same,
        "swap_space_gib": gib,
        "seconds_to_get_it": seconds,
        "longest_launch_ms": {"alone": alone * 1e3, "meanwhile": beside * 1e3},
        "ok": same and complete and min(rates.values()) >= GOAL,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gib", type=float, default=8.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(options.gib)
    print(json.dumps(found, indent=1))
    if options.json:
        command = {"command": "python benchmarks/gpu_swap.py " + " ".join(sys.argv[1:])}
        options.json.write_text(json.dumps(environment() | command | found, indent=1) + "\n")
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
