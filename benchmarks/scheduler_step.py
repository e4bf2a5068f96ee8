"""Host time of a steady decode step: plan and commit, without a model.

    python benchmarks/scheduler_step.py --json benchmarks/results/scheduler-step-cpu.json

Every request decodes; pages of 16 tokens, so in each step about a sixteenth of the requests begin a new page (rows are
staggered). The results that a runner would bring are made outside the clock. Goal: at most 100 µs at 256 requests.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from octavo.plan import StepResult
from octavo.request import EngineRequest, SamplingParams
from octavo.scheduler import Scheduler, SchedulerConfig

SIZES = (1, 16, 64, 256, 1024, 4096)
PAGE = 16


def steady(count: int, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of each step's plan and commit."""
    length = PAGE + steps + 64
    config = SchedulerConfig(
        max_num_seqs=count,
        max_num_batched_tokens=max(8192, count),
        max_model_len=length + PAGE,
        num_pages=count * (length // PAGE + 3),
        page_size=PAGE,
    )
    scheduler = Scheduler(config)
    for handle in range(count):
        params = SamplingParams(max_tokens=length, seed=0, ignore_eos=False)
        prompt = [handle % 1000] * (1 + handle % PAGE)  # staggered page borders
        scheduler.add(
            EngineRequest(
                handle=handle, request_id=str(handle), prompt_token_ids=prompt, params=params, eos_token_ids=(2,)
            )
        )
    in_flight = []
    plans, commits = [], []
    warm = 8
    for step in range(steps + warm):
        start = time.perf_counter()
        plan = scheduler.plan()
        planned = time.perf_counter()
        if plan is None:
            raise RuntimeError("nothing to plan")
        in_flight.append(StepResult(plan.step, np.full(int(plan.sample.sum()), 7, np.int32)))
        if len(in_flight) < 2:
            continue
        result = in_flight.pop(0)
        before = time.perf_counter()
        scheduler.commit(result)
        done = time.perf_counter()
        if step >= warm:
            plans.append(planned - start)
            commits.append(done - before)
    return plans, commits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    print("requests    plan   commit    both (µs, median)    best    µs a request")
    for count in SIZES:
        plans, commits = steady(count, arguments.steps)
        both = [a + b for a, b in zip(plans, commits, strict=True)]
        row = {
            "requests": count,
            "plan_us": statistics.median(plans) * 1e6,
            "commit_us": statistics.median(commits) * 1e6,
            "median_us": statistics.median(both) * 1e6,
            "mean_us": statistics.fmean(both) * 1e6,
            "min_us": min(both) * 1e6,
        }
        rows.append(row)
        print(
            f"{count:8} {row['plan_us']:7.1f} {row['commit_us']:8.1f} {row['median_us']:10.1f} "
            f"{row['min_us']:18.1f} {row['median_us'] / count:12.3f}"
        )
    if arguments.json:
        record = {
            "command": "python benchmarks/scheduler_step.py --json benchmarks/results/scheduler-step-cpu.json",
            "python": sys.version.split()[0],
            "numpy": np.__version__,
            "machine": f"{platform.machine()}, {platform.system()}",
            "steps": arguments.steps,
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
