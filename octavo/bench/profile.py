"""Where the time of a run on a GPU went: what its kernels did, and how long it had nothing to do.

Times come from CUPTI through torch's profiler, kernel by kernel, also inside CUDA graphs.
"""

from __future__ import annotations

import gzip
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from octavo.errors import ConfigError

KINDS = ("gemm", "attention", "sampling", "glue", "copies", "idle")
_PATTERNS = (
    ("attention", re.compile(r"decode_kernel|extend_kernel|plan_kernel|flash|fmha|prefix", re.IGNORECASE)),
    ("gemm", re.compile(r"gemm|gemv|linear|nvjet|cutlass|xmma|splitk|skinny|cublas", re.IGNORECASE)),
    ("sampling", re.compile(r"sample|process_logits|gumbel|search_|logprob|draw", re.IGNORECASE)),
    ("copies", re.compile(r"memcpy|memset", re.IGNORECASE)),
)
_SHOWN = 12  # kernels in the report


def kind_of(name: str) -> str:
    """One of `KINDS` for a kernel's name; "glue" is all that is nothing else."""
    return next((kind for kind, pattern in _PATTERNS if pattern.search(name)), "glue")


def split(kernels: Iterable[tuple[str, int, int]]) -> dict[str, Any]:
    """Sum up kernels given as (name, start in ns, duration in ns).

    Where kernels overlap, each counts whole under its kind; idle is the time in which none ran, between the first
    start and the last end.

    Returns:
        `span_ms`; `ms`: kind → milliseconds; `kernels`: the longest ones as {name, kind, count, ms}.
    """
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    busy, last = 0, 0
    first: int | None = None
    for name, start, duration in sorted(kernels, key=lambda kernel: kernel[1]):
        entry = totals[name]
        entry[0] += 1
        entry[1] += duration
        if first is None:
            first = start
        busy += max(0, start + duration - max(start, last))
        last = max(last, start + duration)
    span = last - (first or 0)
    by_kind = dict.fromkeys(KINDS, 0.0)
    for name, (_, duration) in totals.items():
        by_kind[kind_of(name)] += duration / 1e6
    by_kind["idle"] = (span - busy) / 1e6
    longest = sorted(totals.items(), key=lambda item: -item[1][1])[:_SHOWN]
    return {
        "span_ms": span / 1e6,
        "ms": by_kind,
        "kernels": [
            {"name": name, "kind": kind_of(name), "count": int(count), "ms": duration / 1e6}
            for name, (count, duration) in longest
        ],
    }


def check_possible() -> None:
    """Raises ConfigError if there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            "--profile needs a GPU: it tells what kernels did there.", fix="Leave it out.", param="profile"
        )


def profile(run: Callable[[], Any], trace: Path | None = None) -> dict[str, Any]:
    """Run something under the profiler, which slows the host down, not the GPU.

    Args:
        trace: write a trace there, gzipped JSON that ui.perfetto.dev and chrome://tracing read.

    Returns:
        As `split`.

    Raises:
        ConfigError: there is no GPU.
    """
    import torch

    check_possible()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    if trace is not None:
        activities.append(torch.profiler.ProfilerActivity.CPU)
    with torch.profiler.profile(activities=activities) as profiler:
        run()
        torch.cuda.synchronize()
    events = profiler.profiler.kineto_results.events()
    kernels = [
        (event.name(), event.start_ns(), event.duration_ns()) for event in events if event.device_type().name == "CUDA"
    ]
    if trace is not None:
        _write(profiler, trace)
    return split(kernels)


def _write(profiler: Any, trace: Path) -> None:
    with tempfile.NamedTemporaryFile(suffix=".json") as plain:
        profiler.export_chrome_trace(plain.name)
        with open(plain.name, "rb") as source, gzip.open(trace, "wb") as target:
            shutil.copyfileobj(source, target)
