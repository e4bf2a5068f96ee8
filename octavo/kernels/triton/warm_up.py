# mypy: allow-untyped-defs, allow-untyped-calls
"""Compile kernels side by side before they are first launched, instead of one after the other when they are.

Triton's compiler spends its time in LLVM, ptxas and, for the stub that launches a kernel, a C compiler: all of it
outside the interpreter lock. Stubs are made at a kernel's first launch if nothing asks for them before; with some fifty
kernels that is most of a first start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor


class Launch(NamedTuple):
    """A launch that was not made: the kernel, its grid, what it was called with."""

    kernel: JITFunction[Any]
    grid: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def key(self) -> tuple[Any, ...]:
        """Equal for launches that one compiled kernel serves."""
        values = (*self.args, *(self.kwargs[name] for name in sorted(self.kwargs)))
        return (id(self.kernel), *(_kind(value) for value in values))


def _kind(value: Any) -> Any:
    """What Triton specializes a kernel for."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, TensorDescriptor):
        return value.base.dtype, *value.block_shape
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -64 < value < 1025 else (value % 16 == 0, value.bit_length() > 31)
    return value


_every_variant = False


@contextlib.contextmanager
def every_variant() -> Iterator[None]:
    """Inside, an op that has a kernel for some sizes and another for others launches all of them, so that a few calls
    meet whatever may be needed."""
    global _every_variant
    _every_variant = True
    try:
        yield
    finally:
        _every_variant = False


def wants_every_variant() -> bool:
    """Whether this is inside `every_variant`."""
    return _every_variant


@contextlib.contextmanager
def recorded() -> Iterator[dict[Any, Launch]]:
    """Inside, launches are noted instead of made: the first of those that one compiled kernel serves, by their key.
    Only its tensors are kept."""
    launches: dict[Any, Launch] = {}

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launch = Launch(self, grid, args, kwargs)
        launches.setdefault(launch.key(), launch)

    original = JITFunction.run
    JITFunction.run = run
    try:
        yield launches
    finally:
        JITFunction.run = original


def compile_all(launches: Collection[Launch], workers: int = 16) -> None:
    """Compile what the launches need, or find it in Triton's cache, and load it; the longest first, so that none is
    waited for."""
    launches = sorted(launches, key=lambda launch: -len(launch.kernel.src))
    for launch in launches:
        _ = launch.kernel.cache_key  # reads the sources, which is not made for several threads
    own_device = (torch.cuda.set_device, (torch.cuda.current_device(),)) if torch.cuda.is_available() else (None, ())
    with ThreadPoolExecutor(workers, "octavo-compile", *own_device) as pool:
        for job in [pool.submit(_make_ready, launch) for launch in launches]:
            job.result()


def _make_ready(launch: Launch) -> None:
    compiled = launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.kwargs)
    _ = compiled.run  # makes its stub and loads it
