"""What Linux tells of the server's process, under the names that Prometheus' clients give it."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

Figure = tuple[str, str, str, float]

_CLOCK_TICKS = 100.0 if not hasattr(os, "sysconf") else float(os.sysconf("SC_CLK_TCK"))


def process_figures() -> Iterator[Figure]:
    """(name, kind, help, value) of CPU time, memory, descriptors and the start; on other systems only the first."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    text = "CPU time of the server's process, without the engine's."
    yield "process_cpu_seconds_total", "counter", text, used.ru_utime + used.ru_stime
    try:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        descriptors = len(os.listdir("/proc/self/fd"))
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    except (OSError, StopIteration):
        return
    yield "process_resident_memory_bytes", "gauge", "Memory of the server's process.", resident
    yield "process_open_fds", "gauge", "Descriptors that the server's process has open.", descriptors
    started = float(boot.split()[1]) + ticks / _CLOCK_TICKS
    yield "process_start_time_seconds", "gauge", "When it was started, in seconds since 1970.", started
