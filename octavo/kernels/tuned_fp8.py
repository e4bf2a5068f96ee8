"""Which of several ways multiplies so many e4m3 rows by such a matrix: timed when the engine starts.

Which is the fastest differs by rows and shape: cuBLAS with a scale for each row, cuBLAS without scales and a small
kernel that applies them, our own kernel for few rows (benchmarks/gpu_fp8.py prints all of them), or one of cuBLASLt's
algorithms that is not its heuristics' first. An algorithm is used for the very number of rows it was timed with; what
it computes there must agree with what cuBLAS does by itself.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from octavo.kernels import cublaslt, kept_choices
from octavo.kernels.cublaslt import Algorithm, CublasLtError, Product
from octavo.kernels.kept_choices import card
from octavo.kernels.timing import CALLS, WORTH, Rounds, best_milliseconds, queue_rounds

if TYPE_CHECKING:
    from octavo.kernels.triton.skinny_linear import Tuning

ROUNDS = 3
ALGORITHMS = 6  # of cuBLASLt's that are tried
FEW = 16  # up to so many rows none is
AGREES = 0.02  # of the largest value
COMPARED = 64  # rows, evenly spread
LARGEST = 1024  # more rows are always multiplied row by row: applying scales apart would move too much memory
_AHEAD_CYCLES = 400_000  # the device waits so long for the host to queue a timing's calls: about 200 µs

Shape = tuple[int, int]  # outputs, columns


class Stored(NamedTuple):
    """weight: float8_e4m3fn [N, K]; scales: float32 [N]; dtype: of products."""

    weight: torch.Tensor
    scales: torch.Tensor
    dtype: torch.dtype


class LtAlgorithm(NamedTuple):
    """One of cuBLASLt's algorithms, with a scale for each row, as the eight words that it is kept as."""

    words: tuple[int, ...]


if TYPE_CHECKING:
    Way = Literal["row-wise", "tensor-wise"] | Tuning | LtAlgorithm
else:
    Way = object

Matrices = dict[Shape, list[Stored]]
Key = tuple[int, Shape]  # rows and shape
Multiply = Callable[[torch.Tensor, torch.Tensor, Stored, Way], torch.Tensor]
"""x [M, K], its scales [M, 1], what it is multiplied by, way → [M, N]."""

_chosen: dict[Shape, tuple[list[int], list[Way]]] = {}  # numbers of rows in order, and what is best up to each
_exact: dict[Key, LtAlgorithm] = {}  # what is better still, for this number of rows
_seen: Matrices | None = None


def candidates(rows: int, outputs: int, columns: int) -> list[Way]:
    """The ways that are worth a try; the first is right for any shape."""
    from octavo.kernels.triton.skinny_linear import Tuning

    if rows > LARGEST:
        return ["row-wise"]
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
    """What was the fastest for so many rows, or for the next larger number that was timed; None if none was."""
    shape = stored.weight.shape[0], stored.weight.shape[1]
    if _seen is not None:
        _seen.setdefault(shape, []).append(stored)
    exact = _exact.get((rows, shape))
    if exact is not None:
        return exact
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


def multiply_by(way: LtAlgorithm, x: torch.Tensor, x_scales: torch.Tensor, stored: Stored) -> torch.Tensor:
    """x float8_e4m3fn [M, K], its scales float32 [M, 1], both contiguous → bfloat16 [M, N].

    Raises:
        CublasLtError: the algorithm cannot do it.
    """
    outputs, columns = stored.weight.shape
    product = _product(len(x), outputs, columns)
    y = torch.empty(len(x), outputs, dtype=torch.bfloat16, device=x.device)
    product.scale(x_scales, stored.scales)
    product.run(x, stored.weight, _algorithm(way), y)
    return y


@functools.cache
def _algorithm(way: LtAlgorithm) -> Algorithm:
    return Algorithm.of(list(way.words))


@functools.cache
def _product(rows: int, outputs: int, columns: int) -> Product:
    return Product.of(rows, outputs, columns, torch.float8_e4m3fn)


def algorithms(rows: int, shape: Shape) -> list[LtAlgorithm]:
    """What cuBLASLt's heuristics think of; nothing where it has no such products."""
    try:
        found = _product(rows, *shape).algorithms(ALGORITHMS) if rows > FEW else []
    except CublasLtError:
        return []
    return [LtAlgorithm(tuple(algorithm.words)) for algorithm in found]


def tune_fp8(matrices: Matrices, sizes: Sequence[int], multiply: Multiply, kept: Path | None = None) -> int:
    """Choose for every number of rows and every shape of matrix. Returns how many products were timed.

    Args:
        kept: a file of earlier choices, read first and then written; what it lacks is timed.
    """
    _chosen.clear()
    _exact.clear()
    keys = [(rows, shape) for shape in matrices for rows in sorted(sizes)]
    if not keys:
        return 0
    name = f"{card(next(iter(matrices.values()))[0].weight.device)}, e4m3, cuBLASLt {cublaslt.version()}"
    stored = kept_choices.read(kept, name)
    known = {key: _read_ways(stored.get(_text(*key)), *key) for key in keys}
    missing = [key for key in keys if known[key] is None]
    used = {key: candidates(key[0], *key[1]) if ways is None else ways[:1] for key, ways in known.items()}
    _load(matrices, used, multiply)
    timed = _time_all(matrices, missing, multiply)
    if timed:
        kept_choices.write(kept, name, {_text(*key): [_written(way) for way in ways] for key, ways in timed.items()})
    for rows, shape in keys:
        ways = timed.get((rows, shape)) or known[rows, shape] or ["row-wise"]
        known_sizes, best = _chosen.setdefault(shape, ([], []))
        known_sizes.append(rows)
        best.append(ways[0])
        if len(ways) > 1 and isinstance(ways[1], LtAlgorithm):
            _exact[rows, shape] = ways[1]
    return len(missing)


def _time_all(matrices: Matrices, keys: Sequence[Key], multiply: Multiply) -> dict[Key, list[Way]]:
    """The fastest way of each key, and behind it the algorithm that is faster still, if one is. Queues everything and
    waits once."""
    timings = {(rows, shape): _queue(rows, matrices[shape][:CALLS], multiply) for rows, shape in keys}
    torch.cuda.synchronize()
    return {key: _fastest(found) for key, found in timings.items()}


class _Timed(NamedTuple):
    """A way's rounds; `off`: how far its product is from cuBLAS's own, as a share of the largest value."""

    way: Way
    rounds: Rounds
    off: torch.Tensor

    @property
    def milliseconds(self) -> float:
        return best_milliseconds(self.rounds)


def _fastest(found: Sequence[_Timed]) -> list[Way]:
    usual = min((each for each in found if not isinstance(each.way, LtAlgorithm)), key=lambda each: each.milliseconds)
    right = [each for each in found if isinstance(each.way, LtAlgorithm) and float(each.off) < AGREES]
    better = min(right, key=lambda each: each.milliseconds, default=usual)
    return [usual.way, better.way] if better.milliseconds < WORTH * usual.milliseconds else [usual.way]


def _read_ways(kept: object, rows: int, shape: Shape) -> list[Way] | None:
    """Ways as they are kept; None for what was not written here."""
    if not isinstance(kept, list) or len(kept) not in (1, 2):
        return None
    first = _read_way(kept[0], rows, shape)
    if first is None:
        return None
    if len(kept) == 1:
        return [first]
    return [first, LtAlgorithm(tuple(kept[1]))] if cublaslt.are_words(kept[1]) else None


def _read_way(kept: object, rows: int, shape: Shape) -> Way | None:
    """A way as it is kept; None for what is none of the candidates."""
    return next((way for way in candidates(rows, *shape) if _written(way) == kept), None)


def _written(way: Way) -> str | list[int]:
    if isinstance(way, LtAlgorithm):
        return list(way.words)
    return way if isinstance(way, str) else list(dataclasses.astuple(way))


def _text(rows: int, shape: Shape) -> str:
    return f"{rows}x{shape[0]}x{shape[1]}"


def chosen() -> dict[str, str]:
    """What was chosen, for people: "rows x outputs x columns" → way."""
    found: dict[str, str] = {}
    for shape, (sizes, ways) in _chosen.items():
        for rows, usual in zip(sizes, ways, strict=True):
            way: Way = _exact.get((rows, shape), usual)
            found[_text(rows, shape)] = way if isinstance(way, str) else repr(way)
    return found


def _load(matrices: Matrices, used: Mapping[Key, Sequence[Way]], multiply: Multiply) -> None:
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


def _queue(rows: int, matrices: Sequence[Stored], multiply: Multiply) -> list[_Timed]:
    """Queue each way's calls between events."""
    outputs, columns = matrices[0].weight.shape
    x, x_scales = _rows(rows, columns, matrices[0].weight.device)
    some = slice(None, None, max(1, rows // COMPARED))
    expected = multiply(x, x_scales, matrices[-1], "row-wise")[some].clone()  # there is no room for many whole products
    found: list[_Timed] = []
    for way in [*candidates(rows, outputs, columns), *algorithms(rows, (outputs, columns))]:

        def call(stored: Stored, way: Way = way) -> torch.Tensor:
            return multiply(x, x_scales, stored, way)

        with contextlib.suppress(CublasLtError):
            y = call(matrices[-1])[some].clone()
            rounds = queue_rounds(call, matrices, ROUNDS, _AHEAD_CYCLES)
            found.append(_Timed(way, rounds, (y - expected).abs().max() / expected.abs().max()))
    return found


def _rows(rows: int, columns: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(rows, columns, device=device).mul_(100).to(torch.float8_e4m3fn)
    return x, torch.full((rows, 1), 0.01, device=device)
