"""What every benchmark keeps beside its numbers: the command, versions, the machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo import __version__
from octavo.errors import ConfigError

_PARTS = ("torch", "numpy", "triton", "transformers")


def environment() -> dict[str, Any]:
    """Command line, versions, CPU, GPU (where torch is loaded and sees one) and the time, for a result's file."""
    return {
        "command": shlex.join(["octavo", *sys.argv[1:]]) if sys.argv else "",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {"octavo": __version__, "python": platform.python_version(), **_installed()},
        "device": _device(),
        "cpu": {"model": _cpu_model(), "cores": usable_cores(), "platform": platform.platform()},
    }


def usable_cores() -> int:
    """The cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _installed() -> dict[str, str]:
    found = {}
    for name in _PARTS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _device() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    return "cpu"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(
            f"The result cannot be written to {path}: {error.strerror}.", fix="Check --json.", param="json"
        ) from error
