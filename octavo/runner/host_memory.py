"""How much memory of the host the pages of preempted sequences may take."""

from __future__ import annotations

import os
from pathlib import Path

from octavo.errors import ConfigError

_DEFAULT_BYTES = 16 << 30
_SHARE = 8  # the default is never more than this fraction of the host's memory


def host_memory_bytes(root: Path = Path("/sys/fs/cgroup")) -> int:
    """The host's memory, or what the control group may use of it (v2 `memory.max`, v1 `memory.limit_in_bytes`)."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            total = min(total, int((root / name).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return total


def swap_bytes(asked_gib: float | None, device_type: str, available: int) -> int:
    """Bytes of host memory for pages of preempted sequences.

    Args:
        asked_gib: --swap-space.
        available: bytes of the host's memory.

    Raises:
        ConfigError: more than the host has is asked for.
    """
    if asked_gib is None:
        return min(_DEFAULT_BYTES, available // _SHARE) if device_type == "cuda" else 0
    if asked_gib * 2**30 > available:
        raise ConfigError(
            f"--swap-space {asked_gib:g} GiB is more than the host's memory of {available / 2**30:.1f} GiB.",
            fix=f"Use at most {available / 2**31:.1f}, or leave it out.",
            param="swap_space",
        )
    return int(asked_gib * 2**30)
