"""How many cores this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path


def available_cores(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores by affinity mask and by the control group's quota (v2 `cpu.max`, v1 `cpu.cfs_*`), at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota_v2(root) or _quota_v1(root)
    return max(1, min(cores, math.ceil(quota))) if quota else max(1, cores)


def _quota_v2(root: Path) -> float | None:
    """The tightest `cpu.max` from this process's own group up to the root."""
    try:
        line = next(x for x in Path("/proc/self/cgroup").read_text().splitlines() if x.startswith("0::"))
        group = root / line[3:].lstrip("/")
    except (OSError, StopIteration):
        group = root
    quotas = []
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            break
        try:
            limit, period = (folder / "cpu.max").read_text().split()
            quotas += [] if limit == "max" else [int(limit) / int(period)]
        except (OSError, ValueError):
            continue
    return min(quotas, default=None)


def _quota_v1(root: Path) -> float | None:
    try:
        limit = int((root / "cpu" / "cpu.cfs_quota_us").read_text())
        period = int((root / "cpu" / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return limit / period if limit > 0 else None
