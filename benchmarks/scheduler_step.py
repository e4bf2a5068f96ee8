"""Host time of a scheduler's step, plan and commit, without a model.

    python benchmarks/scheduler_step.py --json benchmarks/results/scheduler-step-cpu.json

Two loads, both running ahead by one step, with pages of 16 tokens:

steady  every request decodes and none ends. About a sixteenth of them begin a new page in each step (the page borders
        are staggered), so the cost of new pages is in every step. Goal: at most 100 µs at 256 requests.
churn   every request brings 128 tokens for a prompt of 64; one that ends is replaced at once. In each step a 128th of
        them end, are indexed, and are admitted: the step of a busy server. `add` is in the clock.

The results that a runner would bring are made outside the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from octavo.plan import StepResult
from octavo.request import EngineRequest, SamplingParams
from octavo.scheduler import Scheduler, SchedulerConfig

SIZES = (1, 16, 64, 256, 1024, 4096)
PAGE = 16
WARM = 8
CHURN_PROMPT, CHURN_OUTPUT = 64, 128

Times = list[tuple[float, float, float]]  # seconds of add, plan, commit of each step


def request(handle: int, num_prompt: int, max_tokens: int) -> EngineRequest:
    params = SamplingParams(max_tokens=max_tokens, seed=0)
    prompt = [1 + handle % 5000] * num_prompt
    return EngineRequest(handle=handle, request_id="", prompt_token_ids=prompt, params=params, eos_token_ids=(2,))


def scheduler_for(count: int, length: int) -> Scheduler:
    config = SchedulerConfig(
        max_num_seqs=count,
        max_num_batched_tokens=max(8192, 2 * count),
        max_model_len=length + PAGE,
        num_pages=count * (length // PAGE + 3),
        page_size=PAGE,
    )
    return Scheduler(config)


def measure(scheduler: Scheduler, steps: int, arrivals: Callable[[int], list[EngineRequest]]) -> Times:
    """Drive the scheduler; `arrivals(ended)` are the requests that come when so many have ended."""
    in_flight: deque[StepResult] = deque()
    times: Times = []
    ended = 0
    for step in range(steps):
        new = arrivals(ended)
        start = time.perf_counter()
        for one in new:
            scheduler.add(one)
        added = time.perf_counter()
        plan = scheduler.plan()
        planned = time.perf_counter()
        if plan is not None:
            in_flight.append(StepResult(plan.step, np.full(int(plan.sample.sum()), 7, np.int32)))
        if step == 0:
            continue
        result = in_flight.popleft()
        before = time.perf_counter()
        outputs = scheduler.commit(result)
        done = time.perf_counter()
        ended = len(outputs.finished)
        times.append((added - start, planned - added, done - before))
    return times


def steady(count: int, steps: int) -> Times:
    length = PAGE + steps + WARM
    scheduler = scheduler_for(count, length)
    for handle in range(count):
        scheduler.add(request(handle, 1 + handle % PAGE, length))
    return measure(scheduler, steps + WARM, lambda ended: [])[WARM:]


def churn(count: int, steps: int) -> Times:
    length = CHURN_PROMPT + CHURN_OUTPUT
    scheduler = scheduler_for(count, length)
    for handle in range(count):  # the first have less to say, so that ends are spread
        scheduler.add(request(handle, CHURN_PROMPT, 2 + handle * (CHURN_OUTPUT - 1) // count))
    handles = iter(range(count, 1 << 40))
    new = lambda ended: [request(next(handles), CHURN_PROMPT, CHURN_OUTPUT) for _ in range(ended)]  # noqa: E731
    warm = WARM + CHURN_OUTPUT
    return measure(scheduler, steps + warm, new)[warm:]


def summary(load: str, count: int, runs: list[Times]) -> dict[str, float | int | str]:
    """Of the run with the least median: another program's work only ever adds."""
    best = min(runs, key=lambda times: statistics.median(map(sum, times)))
    both = [sum(step) * 1e6 for step in best]
    row: dict[str, float | int | str] = {"load": load, "requests": count}
    for i, part in enumerate(("add", "plan", "commit")):
        row[f"{part}_median_us"] = round(statistics.median(step[i] for step in best) * 1e6, 1)
    row |= {"median_us": round(statistics.median(both), 1), "min_us": round(min(both), 1)}
    row["p90_us"] = round(sorted(both)[len(both) * 9 // 10], 1)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--repeat", type=int, default=5, help="runs of each; the one with the least median counts")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cases = [(name, load, count) for name, load in (("steady", steady), ("churn", churn)) for count in SIZES]
    runs: dict[tuple[str, int], list[Times]] = {(name, count): [] for name, _, count in cases}
    for _ in range(arguments.repeat):  # in rounds, so that a busy minute of the machine does not meet one size only
        for name, load, count in cases:
            runs[name, count].append(load(count, arguments.steps))
    rows = [summary(name, count, some) for (name, count), some in runs.items()]
    print("load    requests     add    plan  commit | µs a step: median    best     p90 | µs a request")
    for row in rows:
        print(
            f"{row['load']:7} {row['requests']:8} {row['add_median_us']:7} {row['plan_median_us']:7} "
            f"{row['commit_median_us']:7} | {row['median_us']:17} {row['min_us']:7} {row['p90_us']:7} | "
            f"{float(row['median_us']) / float(row['requests']):12.3f}"
        )
    if arguments.json:
        record = {
            "command": "python benchmarks/scheduler_step.py --json benchmarks/results/scheduler-step-cpu.json",
            "machine": machine(),
            "python": sys.version.split()[0],
            "numpy": np.__version__,
            "steps": arguments.steps,
            "repeat": arguments.repeat,
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


def machine() -> dict[str, str | int | float]:
    """What the numbers were taken on, and how busy it was with other things."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {"cpu": model, "cores": os.cpu_count() or 0, "system": platform.system(), "load": os.getloadavg()[0]}


if __name__ == "__main__":
    main()
