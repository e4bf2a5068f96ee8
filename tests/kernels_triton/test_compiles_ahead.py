"""Every kernel compiles, without a GPU, for those it is meant for, and fits their shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import octavo.kernels.triton

SHARED_MEMORY = {"sm_80": 163 << 10, "sm_90": 227 << 10, "gfx942": 64 << 10}


@pytest.mark.parametrize("target", SHARED_MEMORY)
def test_every_kernel_compiles(target, tmp_path):
    """In a process of its own: the interpreter, once chosen, is chosen for good."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("compile_ahead.py")
    done = subprocess.run(
        [sys.executable, str(script), target], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = {line["kernel"]: line["shared"] for line in map(json.loads, done.stdout.splitlines())}
    assert max(compiled.values()) <= SHARED_MEMORY[target], compiled
    needs_e4m3 = (
        {"quantize_rows_kernel", "silu_and_mul_fp8_kernel", "skinny_fp8_kernel"} if target == "sm_80" else set()
    )
    assert set(compiled) == kernels_in_the_package() - needs_e4m3


def kernels_in_the_package() -> set[str]:
    """Functions named *_kernel in the sources."""
    sources = Path(octavo.kernels.triton.__file__).parent.glob("*.py")
    lines = [line for source in sources for line in source.read_text().splitlines()]
    return {
        line[4 : line.index("(")]
        for line in lines
        if line.startswith("def ") and line.split("(")[0].endswith("_kernel")
    }
