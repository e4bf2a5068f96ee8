"""The compiled CPU kernels: a plain shared library, called through ctypes, on the threads that torch computes with.

Functions here take contiguous CPU tensors, float32 unless they say otherwise; their callers in `octavo.kernels` and
`octavo.quant` see to it. `capture` records the calls of a forward pass, to be replayed by one call.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from octavo.kernels.native.tape import Arena, OnlyViews, Tape, aligned

LIBRARY = Path(__file__).with_name("liboctavo.so")

_FORMATS = {  # the fields of each kernel's argument struct: q is a pointer or an integer, d a double
    "rms_norm": "6qd",
    "silu_and_mul": "4q",
    "rope_and_cache": "13q",
    "float_rows": "5q",
    "int8_rows": "6q",
    "int8_linear": "9q",
    "int4_linear": "8q",
    "int4_rows": "5q",
    "quantize_weight": "5q",
    "paged_attention": "16qd",
    "gumbel_argmax": "8qd",
    "logit_scores": "6q",
}
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # of keys and values, as in common.h
_PARALLEL_FROM = 1 << 15  # elements touched; less is done sooner by one thread


class _State(threading.local):
    """Of each thread: its scratch memory, and the recording that is under way."""

    scratch = aligned(0)
    tape: Tape | None = None


class _WeightMemory:
    """Memory of int8 matrices, side by side in large pages: reading them is then twice as fast as from 4 KiB pages."""

    _SLAB = 32 << 20

    def __init__(self) -> None:
        self._slab = torch.empty(0, dtype=torch.uint8)

    def empty(self, rows: int, columns: int) -> torch.Tensor:
        """int8 [rows, columns]."""
        size = -(-rows * columns // 64) * 64
        if size > self._slab.numel():
            slab = mmap.mmap(-1, max(size, self._SLAB), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with contextlib.suppress(OSError):  # the kernel has none
                    slab.madvise(mmap.MADV_HUGEPAGE)
            self._slab = torch.frombuffer(slab, dtype=torch.uint8)
        taken, self._slab = self._slab[:size], self._slab[size:]
        return taken[: rows * columns].view(torch.int8).view(rows, columns)


class _Library:
    """What `configure` decided. `ops`: name → the address of the kernel for this CPU, and its argument packer."""

    handle: ctypes.CDLL | None = None
    enabled = True
    reason = ""
    threads = 1
    ops: dict[str, tuple[int, Callable[..., bytes]]]
    run: Callable[[int, bytes, int], None]
    play: Callable[[int, int, int], None]


_local = _State()
_weights = _WeightMemory()
_library = _Library()
_library.ops = {}


def configure(*, enabled: bool = True, threads: int | None = None, avx2: bool | None = None) -> None:
    """Load the kernels, or switch them off.

    Args:
        threads: how many they may use; None means torch's own number.
        avx2: False takes the portable kernels on any CPU, for tests.
    """
    _library.enabled = enabled
    if not enabled:
        _library.reason = "switched off"
        return
    handle = _library.handle or _open()
    if handle is None:
        return
    variant = "avx2" if handle.octavo_has_avx2() and avx2 is not False else "plain"
    try:
        addresses = {name: _address(getattr(handle, f"octavo_{name}_{variant}")) for name in _FORMATS}
    except AttributeError as error:
        _library.reason = f"the compiled library is of another version, install Octavo again ({error})"
        return
    _library.ops = {name: (addresses[name], struct.Struct(fields).pack) for name, fields in _FORMATS.items()}
    _library.threads = threads or torch.get_num_threads()


def _open() -> ctypes.CDLL | None:
    if not LIBRARY.is_file():
        _library.reason = "they were not compiled when Octavo was installed: there was no C compiler"
        return None
    try:
        handle = ctypes.CDLL(str(LIBRARY))
        handle.octavo_run.argtypes, handle.octavo_run.restype = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int], None
        handle.octavo_play.argtypes, handle.octavo_play.restype = [ctypes.c_void_p, ctypes.c_long, ctypes.c_int], None
        handle.octavo_configure.argtypes = [ctypes.c_void_p] * 3
        handle.octavo_configure(*_torch_pool())
    except (OSError, AttributeError) as error:
        _library.reason = str(error)
        return None
    _library.handle, _library.run, _library.play = handle, handle.octavo_run, handle.octavo_play
    return handle


def _torch_pool() -> tuple[int | None, int | None, int | None]:
    """GOMP_parallel, omp_get_thread_num and omp_get_num_threads of the OpenMP library that torch has loaded.

    With one pool, torch's threads and ours are the same; two would fight for the cores. LLVM's libomp has them too.
    """
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    try:
        paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "omp" in line}
    except OSError:
        return None, None, None
    for path in sorted(paths):
        if not os.path.basename(path).startswith(("libgomp", "libomp", "libiomp")):
            continue
        library = ctypes.CDLL(path)
        if all(hasattr(library, name) for name in names):
            run, index, count = (_address(getattr(library, name)) for name in names)
            return run, index, count
    return None, None, None


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def available() -> bool:
    """Whether compiled kernels are used."""
    return _library.enabled and bool(_library.ops)


def reason() -> str:
    """Why they are not."""
    return _library.reason


def usable(*tensors: torch.Tensor) -> bool:
    """Whether the kernels are there and can take these: contiguous float32 on the CPU."""
    return (
        _library.enabled
        and bool(_library.ops)
        and all(x.dtype is torch.float32 and x.is_cpu and x.is_contiguous() for x in tensors)
    )


def usable_caches(*caches: torch.Tensor) -> bool:
    """Whether the kernels can use these pages: contiguous, on the CPU, of a type they know."""
    return all(x.dtype in _TYPES and x.is_cpu and x.is_contiguous() for x in caches)


def _call(name: str, work: int, *fields: float) -> None:
    """Run a kernel; `work` (elements touched) decides between one thread and all."""
    address, pack = _library.ops[name]
    arguments = pack(*fields)
    threads = _library.threads if work >= _PARALLEL_FROM else 1
    if _local.tape is not None:
        _local.tape.record(address, arguments, threads)
    _library.run(address, arguments, threads)


def capture(function: Callable[[], torch.Tensor], arena: Arena) -> tuple[torch.Tensor, Callable[[], None]]:
    """Run a function that computes with compiled kernels only, and record it.

    Returns:
        Its result, and a function that does it all again, reading and writing the same memory: new inputs are put where
        the old ones were, and the result's tensor then holds the new result.

    Raises:
        NotRecordable: it computes with anything else.
    """
    tape = _local.tape = Tape(arena)
    try:
        with OnlyViews():
            result = function()
    finally:
        _local.tape = None
    return result, tape.freeze(_library.play, _library.threads)


def _empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape) if _local.tape is None else _local.tape.empty(shape)


def _scratch(nbytes: int) -> int:
    """Address of at least so many bytes, for the length of one kernel."""
    if _local.scratch.nbytes < nbytes:
        _local.scratch = aligned(nbytes + nbytes // 4)
    if _local.tape is not None:
        _local.tape.keep(_local.scratch)
    return _local.scratch.ctypes.data


def rms_norm(x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [T, H] normed; with a residual [T, H], x is added to it, in place, first."""
    y = _empty(*x.shape)
    address = 0 if residual is None else residual.data_ptr()
    _call("rms_norm", x.numel(), x.data_ptr(), address, weight.data_ptr(), y.data_ptr(), *x.shape, eps)
    return y


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """[T, 2 I] → silu(first half) * second half, [T, I]."""
    count, size = x.shape
    y = _empty(count, size // 2)
    _call("silu_and_mul", x.numel() * 4, x.data_ptr(), y.data_ptr(), count, size // 2)
    return y


def rope_and_cache(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
) -> torch.Tensor:
    """See `octavo.kernels.rope_and_cache`; positions int32, slot_mapping int64, caches of any type of `_TYPES`."""
    count = qkv.shape[0]
    q = _empty(count, num_heads, head_dim)
    _call(
        "rope_and_cache",
        qkv.numel(),
        qkv.data_ptr(),
        cos_sin.data_ptr(),
        positions.data_ptr(),
        slot_mapping.data_ptr(),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        q.data_ptr(),
        count,
        num_heads,
        num_kv_heads,
        head_dim,
        k_cache.shape[2],
        _TYPES[k_cache.dtype],
    )
    return q


_CHUNK = 128  # keys of a task of one query, as in attention.c


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """See `octavo.kernels.paged_attention`; head_dim a multiple of 16, caches of any type of `_TYPES`."""
    count, num_heads, head_dim = q.shape
    rows, blocks = block_table.shape
    _, num_kv_heads, page_size, _ = k_cache.shape
    out = _empty(count, num_heads, head_dim)
    longest = blocks * page_size
    chunks = -(-longest // _CHUNK)
    _call(
        "paged_attention",
        count * num_heads * longest,
        q.data_ptr(),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        block_table.data_ptr(),
        query_start_loc.data_ptr(),
        seq_lens.data_ptr(),
        out.data_ptr(),
        _scratch(4 * rows * num_heads * chunks * (head_dim + 2)),
        rows,
        num_heads,
        num_kv_heads,
        head_dim,
        page_size,
        blocks,
        chunks,
        _TYPES[k_cache.dtype],
        scale,
    )
    return out


def float_rows(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Rows of a matrix [N, K]: int64 ids [T] → [T, K]."""
    y = _empty(len(ids), weight.shape[1])
    _call("float_rows", y.numel(), weight.data_ptr(), ids.data_ptr(), y.data_ptr(), *y.shape)
    return y


def int8_rows(ids: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Rows of an int8 matrix [N, K]: int64 ids [T] → [T, K]."""
    y = _empty(len(ids), weight.shape[1])
    _call("int8_rows", y.numel(), weight.data_ptr(), scale.data_ptr(), ids.data_ptr(), y.data_ptr(), *y.shape)
    return y


def int8_linear(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x [T, K], weight int8 [N, K], scale [N], bias [N] → [T, N]; see `octavo.quant.int8`."""
    count, features = x.shape
    outputs = weight.shape[0]
    y = _empty(count, outputs)
    _call(
        "int8_linear",
        count * features * outputs,
        x.data_ptr(),
        weight.data_ptr(),
        scale.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        _scratch(2 * count * (features + 31) + 4 * count + 64) if count > 1 or features > 4096 else 0,
        count,
        features,
        outputs,
    )
    return y


def int4_linear(x: torch.Tensor, weight: torch.Tensor, outputs: int, bias: torch.Tensor | None) -> torch.Tensor:
    """x [T, K], weight uint8 as `octavo.quant.int4.pack` makes it, bias [N] → [T, N]; K is a multiple of 32."""
    count, features = x.shape
    y = _empty(count, outputs)
    _call(
        "int4_linear",
        count * features * outputs,
        x.data_ptr(),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        _scratch(count * (features + features // 4) + 128) if count > 4 or features > 4096 else 0,
        count,
        features,
        outputs,
    )
    return y


def int4_rows(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Rows of such a matrix: int64 ids [T] → [T, K]."""
    y = _empty(len(ids), weight.shape[1] * 32)
    _call("int4_rows", y.numel(), weight.data_ptr(), ids.data_ptr(), y.data_ptr(), *y.shape)
    return y


def weight_memory(size: int) -> torch.Tensor:
    """uint8 [size] for a matrix, aligned to 64 bytes, in large pages where the system has them."""
    return _weights.empty(1, size).view(torch.uint8)[0]


def quantize_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, K] → int8 [N, K], scale [N]."""
    q, scale = _weights.empty(*weight.shape), torch.empty(weight.shape[0])
    _call("quantize_weight", weight.numel(), weight.data_ptr(), q.data_ptr(), scale.data_ptr(), *weight.shape)
    return q, scale


def gumbel_argmax(
    logits: torch.Tensor,
    inv_temperature: float,
    seed: int,
    position: int,
    mask: npt.NDArray[np.int32] | None = None,
) -> int:
    """argmax(logits [V] * inv_temperature + noise), the noise as `octavo.kernels.sampling.philox.gumbel_noise` has it.

    Args:
        inv_temperature: 0 for no noise: the highest logit's id.
        seed: 64 bits.
        mask: int32 [(V + 31) // 32], bit i of word w allows the token 32 w + i; None allows all.
    """
    count = logits.numel()
    token = ctypes.c_int64()
    signed = (seed & (1 << 64) - 1) - ((seed & 1 << 63) << 1)
    _call(
        "gumbel_argmax",
        count * 8,
        logits.data_ptr(),
        0 if mask is None else mask.ctypes.data,
        _scratch(4 * (count // 32 + 1)),
        ctypes.addressof(token),
        count,
        signed,
        position & 0xFFFFFFFF,
        inv_temperature > 0,
        inv_temperature,
    )
    return token.value


def logit_scores(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of logits [S, V] and int64 targets [S]: log of each row's sum of exponentials, float32 [S, 1], and how many of
    the row are higher than its target's, int64 [S]."""
    count, width = logits.shape
    total, beaten_by = torch.empty(count, 1), torch.empty(count, dtype=torch.int64)
    _call(
        "logit_scores",
        logits.numel() * 4,
        logits.data_ptr(),
        targets.data_ptr(),
        total.data_ptr(),
        beaten_by.data_ptr(),
        count,
        width,
    )
    return total, beaten_by
