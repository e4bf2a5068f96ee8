"""The compiled CPU kernels: a plain shared library, called through ctypes, on the threads that torch computes with.

Functions take contiguous float32 CPU tensors unless they say otherwise; their callers in `octavo.kernels` see to it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LIBRARY = Path(__file__).with_name("liboctavo.so")


class _State:
    """What `configure` decided. `ops`: name → the function for this CPU."""

    library: ctypes.CDLL | None = None
    enabled = True
    reason = ""
    ops: dict[str, Callable[..., Any]]


_state = _State()
_state.ops = {}

_P, _L, _F, _I, _U64 = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int, ctypes.c_uint64
_SIGNATURES: dict[str, list[Any]] = {
    "int8_linear": [_P, _P, _P, _P, _P, _L, _L, _L],
    "quantize_weight": [_P, _P, _P, _L, _L],
}


def configure(*, enabled: bool = True, threads: int | None = None, avx2: bool | None = None) -> None:
    """Load the kernels, or switch them off.

    Args:
        threads: how many they may use; None means torch's own number.
        avx2: False takes the portable kernels on any CPU, for tests.
    """
    _state.enabled = enabled
    if not enabled:
        _state.reason = "switched off"
        return
    if _state.library is None:
        if not LIBRARY.is_file():
            _state.reason = "they were not compiled when Octavo was installed: there was no C compiler"
            return
        try:
            _state.library = ctypes.CDLL(str(LIBRARY))
        except OSError as error:
            _state.reason = str(error)
            return
    library = _state.library
    variant = "avx2" if library.octavo_has_avx2() and avx2 is not False else "plain"
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, f"octavo_{name}_{variant}")
        function.argtypes, function.restype = arguments, None
        _state.ops[name] = function
    parallel, thread_num = _torch_pool()
    library.octavo_configure.argtypes = [_P, _P, _I]
    library.octavo_configure(parallel, thread_num, threads or torch.get_num_threads())


def _torch_pool() -> tuple[int | None, int | None]:
    """Addresses of GOMP_parallel and omp_get_thread_num in the OpenMP library that torch has loaded.

    With one pool, torch's threads and ours are the same; two would fight for the cores. LLVM's libomp has both too.
    """
    try:
        paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "omp" in line}
    except OSError:
        return None, None
    for path in sorted(paths):
        if not os.path.basename(path).startswith(("libgomp", "libomp", "libiomp")):
            continue
        library = ctypes.CDLL(path)
        if hasattr(library, "GOMP_parallel") and hasattr(library, "omp_get_thread_num"):
            return _address(library.GOMP_parallel), _address(library.omp_get_thread_num)
    return None, None


def _address(function: Any) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value


def available() -> bool:
    """Whether compiled kernels are used."""
    return _state.enabled and bool(_state.ops)


def reason() -> str:
    """Why they are not."""
    return _state.reason


def int8_linear(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x [T, K], weight int8 [N, K], scale [N], bias [N] → [T, N]; see `octavo.quant.int8`."""
    count, features = x.shape
    y = torch.empty((count, weight.shape[0]))
    _state.ops["int8_linear"](
        x.data_ptr(),
        weight.data_ptr(),
        scale.data_ptr(),
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        count,
        features,
        weight.shape[0],
    )
    return y


def quantize_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, K] → int8 [N, K], scale [N]."""
    q, scale = torch.empty(weight.shape, dtype=torch.int8), torch.empty(weight.shape[0])
    _state.ops["quantize_weight"](weight.data_ptr(), q.data_ptr(), scale.data_ptr(), *weight.shape)
    return q, scale


def gumbel_argmax(logits: torch.Tensor, inv_temperature: float, seed: int, position: int) -> int:
    raise RuntimeError(reason())
