"""Run Triton kernels on the CPU through its interpreter, or on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
HAS_TRITON = importlib.util.find_spec("triton") is not None
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel's module is imported
if HAS_TRITON:
    import interpreter_fixes

    interpreter_fixes.apply()


class _Skipped(pytest.Module):
    """A test module that cannot be imported, reported as one skipped test instead of silently left out."""

    def collect(self) -> list[pytest.Item]:
        pytest.skip("triton is not installed", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if HAS_TRITON or module_path.parent != Path(__file__).parent:
        return None
    return _Skipped.from_parent(parent, path=module_path)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
