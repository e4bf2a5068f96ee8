"""Which of several ways multiplies so many e4m3 rows by such a matrix: timed when the engine starts.

Which is the fastest differs by rows and shape: cuBLAS with a scale for each row, cuBLAS without scales and a small
kernel that applies them, or our own kernel for few rows (benchmarks/gpu_fp8.py prints all of them).
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from octavo.kernels import kept_choices
from octavo.kernels.kept_choices import card

if TYPE_CHECKING:
    from octavo.kernels.triton.skinny_linear import Tuning

    Way = Literal["row-wise", "tensor-wise"] | Tuning
else:
    Way = object

CALLS = 8  # a timing, over as many matrices of the shape as there are
ROUNDS = 3  # of which each way's best counts: one alone is often disturbed
LARGEST = 1024  # more rows are always multiplied row by row: applying scales apart would move too much memory
_AHEAD_CYCLES = 400_000  # the device waits so long for the host to queue a timing's calls: about 200 µs

Shape = tuple[int, int]  # outputs, columns


class Stored(NamedTuple):
    """weight: float8_e4m3fn [N, K]; scales: float32 [N]; dtype: of products."""

    weight: torch.Tensor
    scales: torch.Tensor
    dtype: torch.dtype


Matrices = dict[Shape, list[Stored]]
Multiply = Callable[[torch.Tensor, torch.Tensor, Stored, Way], torch.Tensor]
"""x [M, K], its scales [M, 1], what it is multiplied by, way → [M, N]."""

_chosen: dict[Shape, tuple[list[int], list[Way]]] = {}  # numbers of rows in order, and what is best for each
_seen: Matrices | None = None


def candidates(rows: int, outputs: int, columns: int) -> list[Way]:
    """The ways that are worth a try; the first is right for any shape."""
    from octavo.kernels.triton.skinny_linear import Tuning

    ways: list[Way] = ["row-wise", "tensor-wise"]
    if rows > 128 or outputs % 64 or columns % 256:
        return ways
    if rows <= 16:
        shapes = [(64, 256, 1, 4, 4), (64, 256, 4, 3, 4), (64, 256, 2, 3, 4), (64, 128, 4, 6, 4), (64, 128, 1, 6, 4)]
        shapes += [(16, 256, 1, 8, 2), (16, 512, 1, 4, 4)]  # on Hopper these multiply in float16
    elif rows <= 64:
        shapes = [(64, 256, 1, 3, 4), (64, 128, 1, 5, 4), (64, 128, 2, 4, 4), (64, 128, 4, 4, 4)]
    else:
        shapes = [(64, 128, 1, 4, 4), (64, 128, 4, 4, 4)]
    if rows > 16 and outputs % 128 == 0:
        shapes.append((128, 128, 1, 4, 8))
    return ways + [Tuning(*shape, prefetch=0) for shape in shapes if shape[2] == 1 or outputs <= 8192]


def choice(rows: int, stored: Stored) -> Way | None:
    """What was the fastest for the next larger number of rows that was timed; None if none was."""
    shape = stored.weight.shape[0], stored.weight.shape[1]
    if _seen is not None:
        _seen.setdefault(shape, []).append(stored)
    sizes, ways = _chosen.get(shape, ((), ()))
    at = bisect.bisect_left(sizes, rows)
    return ways[at] if at < len(sizes) else None


@contextlib.contextmanager
def fp8_matrices_seen() -> Iterator[Matrices]:
    """Inside, the matrices that products are made with are noted by shape."""
    global _seen
    seen: Matrices = {}
    _seen = seen
    try:
        yield seen
    finally:
        _seen = None


def tune_fp8(matrices: Matrices, sizes: Sequence[int], multiply: Multiply, kept: Path | None = None) -> int:
    """Choose for every number of rows up to 1,024 and every shape of matrix. Returns how many products were timed.

    Args:
        kept: a file of earlier choices, read first and then written; what it lacks is timed.
    """
    _chosen.clear()
    keys = [(rows, shape) for shape in matrices for rows in sorted(sizes) if rows <= LARGEST]
    if not keys:
        return 0
    name = f"{card(next(iter(matrices.values()))[0].weight.device)}, e4m3"
    stored = kept_choices.read(kept, name)
    known = {(rows, shape): _read_way(stored.get(_text(rows, shape)), rows, shape) for rows, shape in keys}
    missing = [key for key in keys if known[key] is None]
    used = {key: candidates(key[0], *key[1]) if way is None else [way] for key, way in known.items()}
    _load(matrices, used, multiply)
    timed = _time_all(matrices, missing, multiply)
    if timed:
        kept_choices.write(kept, name, {_text(*key): _written_way(way) for key, way in timed.items()})
    for rows, shape in keys:
        known_sizes, ways = _chosen.setdefault(shape, ([], []))
        known_sizes.append(rows)
        way = timed.get((rows, shape), known[rows, shape])
        ways.append(way if way is not None else "row-wise")
    return len(missing)


def _time_all(
    matrices: Matrices, keys: Sequence[tuple[int, Shape]], multiply: Multiply
) -> dict[tuple[int, Shape], Way]:
    """The fastest way of each key. Queues everything and waits once."""
    timings = [
        ((rows, shape), _queue(rows, matrices[shape][:CALLS], multiply)) for _ in range(ROUNDS) for rows, shape in keys
    ]
    torch.cuda.synchronize()
    best: dict[tuple[int, Shape], tuple[float, Way]] = {}
    for key, found in timings:
        for way, (start, end) in found:
            took = float(start.elapsed_time(end))
            if key not in best or took < best[key][0]:
                best[key] = took, way
    return {key: way for key, (_, way) in best.items()}


def _read_way(kept: object, rows: int, shape: Shape) -> Way | None:
    """A way as it is kept; None for what is none of the candidates."""
    return next((way for way in candidates(rows, *shape) if _written_way(way) == kept), None)


def _written_way(way: Way) -> str | list[int]:
    return way if isinstance(way, str) else list(dataclasses.astuple(way))


def _text(rows: int, shape: Shape) -> str:
    return f"{rows}x{shape[0]}x{shape[1]}"


def chosen() -> dict[str, str]:
    """What was chosen, for people: "rows x outputs x columns" → way."""
    return {
        _text(rows, shape): way if isinstance(way, str) else repr(way)
        for shape, (sizes, ways) in _chosen.items()
        for rows, way in zip(sizes, ways, strict=True)
    }


def _load(matrices: Matrices, used: Mapping[tuple[int, Shape], Sequence[Way]], multiply: Multiply) -> None:
    """Compile what is to be launched, side by side, and launch it once: within a graph's capture it must be there."""
    from octavo.kernels.triton.warm_up import compile_all, recorded

    def launch() -> None:
        for (rows, shape), ways in used.items():
            stored = matrices[shape][0]
            x, x_scales = _rows(rows, shape[1], stored.weight.device)
            for way in ways:
                if not isinstance(way, str):
                    multiply(x, x_scales, stored, way)

    with recorded() as launches:
        launch()
    compile_all(launches.values())
    launches.clear()
    launch()


def _queue(
    rows: int, matrices: Sequence[Stored], multiply: Multiply
) -> list[tuple[Way, tuple[torch.cuda.Event, torch.cuda.Event]]]:
    """Queue each way's calls between two events."""
    outputs, columns = matrices[0].weight.shape
    x, x_scales = _rows(rows, columns, matrices[0].weight.device)
    found: list[tuple[Way, tuple[torch.cuda.Event, torch.cuda.Event]]] = []
    for way in candidates(rows, outputs, columns):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_AHEAD_CYCLES)
        multiply(x, x_scales, matrices[-1], way)
        start.record()
        for i in range(CALLS):
            multiply(x, x_scales, matrices[i % len(matrices)], way)
        end.record()
        found.append((way, (start, end)))
    return found


def _rows(rows: int, columns: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(rows, columns, device=device).mul_(100).to(torch.float8_e4m3fn)
    return x, torch.full((rows, 1), 0.01, device=device)
