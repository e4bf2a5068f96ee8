"""cuBLASLt's products by algorithm: its heuristics rank many, and the first is often not the fastest for mid-size M.

A binding of the few calls that are needed (https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api), because torch
takes the heuristics' first choice and lets nobody ask for another.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch

_COMPUTE_32F, _R_32F, _R_16BF, _R_16F = 68, 0, 14, 2
_TRANSA, _WORKSPACE, _OP_T = 3, 1, 1
_TYPES = {torch.bfloat16: _R_16BF, torch.float16: _R_16F}
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

    cuBLAS counts columns first: to it, W is [K, N] transposed, x is [K, M], and the result is [N, M].
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
        transposed = ctypes.c_int32(_OP_T)
        _call(
            "cublasLtMatmulDescSetAttribute",
            description,
            _TRANSA,
            ctypes.byref(transposed),
            ctypes.c_size_t(ctypes.sizeof(transposed)),
        )
        return Product(description, _layout(kind, k, n, k), _layout(kind, k, m, k), _layout(kind, n, m, n))

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

    def run(
        self, x: torch.Tensor, weight: torch.Tensor, algorithm: Algorithm, out: torch.Tensor, *, adds: bool = False
    ) -> None:
        """Write x Wᵀ to `out` [M, N] on the current stream, or add it to what is there.

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


_ONE, _ZERO = ctypes.c_float(1.0), ctypes.c_float(0.0)


@functools.cache
def _workspace(device: torch.device) -> torch.Tensor:
    return torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
