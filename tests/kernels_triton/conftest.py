"""Run Triton kernels on the CPU through its interpreter, or on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel's module is imported

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    import triton.language as tl
    import triton.runtime.interpreter as interpreter

    _patch_tensor = interpreter._patch_lang_tensor

    def _patch_scalars(tensor: Any, scope: Any) -> None:
        """Triton 3.6 converts one-element arrays by int(), which numpy 2.4 refuses."""
        _patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    _create_dot = interpreter.InterpreterBuilder.create_dot

    def _dot_of_bfloat16(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        """Triton 3.6 holds bfloat16 as uint16 bits and multiplies those: widen first, which is exact."""
        a, b = (_widen(x) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return _create_dot(self, a, b, *rest)

    def _widen(handle: Any) -> Any:
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    interpreter._patch_lang_tensor = _patch_scalars
    interpreter.InterpreterBuilder.create_dot = _dot_of_bfloat16


def pytest_report_header() -> str:
    found = importlib.util.find_spec("triton") is not None
    return "triton: " + ("found" if found else "missing, kernel tests are skipped")


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
