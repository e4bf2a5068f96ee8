"""cuBLASLt's products by algorithm: its heuristics rank many, and the first is often not the fastest for mid-size M.

A binding of the few calls that are needed (https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api), because torch
takes the heuristics' first choice and lets nobody ask for another.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import torch

_COMPUTE_32F, _R_32F, _R_16BF, _R_16F, _R_8F_E4M3 = 68, 0, 14, 2, 28
_WORKSPACE, _OP_T, _OUTER_VECTOR = 1, 1, 3
_TRANSA, _SCALE_A, _SCALE_B, _FAST_ACCUMULATION, _MODE_A, _MODE_B = 3, 17, 18, 25, 31, 32  # of a product's description
_TYPES = {torch.bfloat16: _R_16BF, torch.float16: _R_16F, torch.float8_e4m3fn: _R_8F_E4M3}
WORKSPACE_BYTES = 32 << 20


class Algorithm(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t; the first 64 bytes are the algorithm, opaque, good for one library version."""

    _fields_ = (
        ("algo", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )

    @staticmethod
    def of(words: list[int]) -> Algorithm:
        """From the eight words that `algo` was."""
        return Algorithm(algo=(ctypes.c_uint64 * 8)(*words))

    @property
    def words(self) -> list[int]:
        """What `of` takes."""
        return [int(word) for word in self.algo]


def are_words(value: object) -> bool:
    """Whether a value, of a file perhaps, may be given to `Algorithm.of`."""
    return (
        isinstance(value, list) and len(value) == 8 and all(type(word) is int and 0 <= word < 1 << 64 for word in value)
    )


class CublasLtError(RuntimeError):
    """A call failed; the text has its name and status."""


@functools.cache
def _library() -> ctypes.CDLL:
    """The library that torch has loaded."""
    major = (torch.version.cuda or "13").partition(".")[0]
    return ctypes.CDLL(f"libcublasLt.so.{major}")


def _call(name: str, *arguments: object) -> None:
    status = getattr(_library(), name)(*arguments)
    if status != 0:
        raise CublasLtError(f"{name} ended with status {status}")


@functools.cache
def version() -> int:
    """As 130200; algorithms are kept by it."""
    function = _library().cublasLtGetVersion
    function.restype = ctypes.c_size_t
    return int(function())


@functools.cache
def _handle() -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    _call("cublasLtCreate", ctypes.byref(handle))
    return handle


def _layout(kind: int, rows: int, columns: int, stride: int) -> ctypes.c_void_p:
    layout = ctypes.c_void_p()
    _call(
        "cublasLtMatrixLayoutCreate",
        ctypes.byref(layout),
        ctypes.c_int(kind),
        ctypes.c_uint64(rows),
        ctypes.c_uint64(columns),
        ctypes.c_int64(stride),
    )
    return layout


@dataclass(frozen=True, slots=True)
class Product:
    """x Wᵀ for x [M, K] and W [N, K], both with contiguous rows: descriptors, made once (never freed, some 100 bytes).

    Two of e4m3 have a scale for each row, and a product in bfloat16. cuBLAS counts columns first: to it, W is [K, N]
    transposed, x is [K, M], and the result is [N, M].
    """

    description: ctypes.c_void_p
    a: ctypes.c_void_p
    b: ctypes.c_void_p
    d: ctypes.c_void_p

    @staticmethod
    def of(m: int, n: int, k: int, dtype: torch.dtype) -> Product:
        kind = _TYPES[dtype]
        description = ctypes.c_void_p()
        _call("cublasLtMatmulDescCreate", ctypes.byref(description), _COMPUTE_32F, _R_32F)
        _describe(description, _TRANSA, ctypes.c_int32(_OP_T))
        if kind == _R_8F_E4M3:
            _describe(description, _FAST_ACCUMULATION, ctypes.c_int8(1))
            _describe(description, _MODE_A, ctypes.c_int32(_OUTER_VECTOR))
            _describe(description, _MODE_B, ctypes.c_int32(_OUTER_VECTOR))
        out = _R_16BF if kind == _R_8F_E4M3 else kind
        return Product(description, _layout(kind, k, n, k), _layout(kind, k, m, k), _layout(out, n, m, n))

    def algorithms(self, most: int) -> list[Algorithm]:
        """What the heuristics think of, the best first."""
        preference = ctypes.c_void_p()
        _call("cublasLtMatmulPreferenceCreate", ctypes.byref(preference))
        limit = ctypes.c_size_t(WORKSPACE_BYTES)
        _call(
            "cublasLtMatmulPreferenceSetAttribute",
            preference,
            _WORKSPACE,
            ctypes.byref(limit),
            ctypes.c_size_t(ctypes.sizeof(limit)),
        )
        found, count = (Algorithm * most)(), ctypes.c_int()
        where = (self.description, self.a, self.b, self.d, self.d)
        _call("cublasLtMatmulAlgoGetHeuristic", _handle(), *where, preference, most, found, ctypes.byref(count))
        _call("cublasLtMatmulPreferenceDestroy", preference)
        return [found[i] for i in range(count.value) if found[i].state == 0]

    def scale(self, x_scales: torch.Tensor, w_scales: torch.Tensor) -> None:
        """What the next `run` of e4m3 multiplies by: float32, contiguous, one for each row of x and of W."""
        _describe(self.description, _SCALE_A, ctypes.c_void_p(w_scales.data_ptr()))
        _describe(self.description, _SCALE_B, ctypes.c_void_p(x_scales.data_ptr()))

    def run(
        self, x: torch.Tensor, weight: torch.Tensor, algorithm: Algorithm, out: torch.Tensor, *, adds: bool = False
    ) -> None:
        """Write x Wᵀ to `out` [M, N] on the current stream, or add it to what is there.

        Of e4m3, after `scale`.

        Raises:
            CublasLtError: the algorithm cannot do it.
        """
        workspace = _workspace(x.device)
        _call(
            "cublasLtMatmul",
            _handle(),
            self.description,
            ctypes.byref(_ONE),
            ctypes.c_void_p(weight.data_ptr()),
            self.a,
            ctypes.c_void_p(x.data_ptr()),
            self.b,
            ctypes.byref(_ONE if adds else _ZERO),
            ctypes.c_void_p(out.data_ptr()),
            self.d,
            ctypes.c_void_p(out.data_ptr()),
            self.d,
            ctypes.byref(algorithm),
            ctypes.c_void_p(workspace.data_ptr()),
            ctypes.c_size_t(WORKSPACE_BYTES),
            ctypes.c_void_p(torch.cuda.current_stream(x.device).cuda_stream),
        )


def _describe(description: ctypes.c_void_p, attribute: int, value: Any) -> None:
    _call(
        "cublasLtMatmulDescSetAttribute",
        description,
        attribute,
        ctypes.byref(value),
        ctypes.c_size_t(ctypes.sizeof(value)),
    )


_ONE, _ZERO = ctypes.c_float(1.0), ctypes.c_float(0.0)


@functools.cache
def _workspace(device: torch.device) -> torch.Tensor:
    return torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
