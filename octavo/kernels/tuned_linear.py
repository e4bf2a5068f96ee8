"""Which of cuBLASLt's algorithms multiplies so many rows by such a matrix: tried when the engine starts, then kept.

cuBLAS's own choice is near the best for most numbers of rows and far from it for some: 448 rows of Llama 3.1 8B's
widest matrix take 291 µs with it and 159 µs with its heuristics' third choice (benchmarks/gpu_mid_gemm.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from octavo.kernels import cublaslt, kept_choices
from octavo.kernels.cublaslt import Algorithm, CublasLtError, Product
from octavo.kernels.kept_choices import card

CANDIDATES = 8
CALLS = 4  # a timing, over as many matrices of the shape as there are
WIDEST = 1 << 16  # outputs; wider ones, of heads, take long to try and have tiles for every multiprocessor
WORTH = 0.97  # a choice of ours takes at most this share of the time of torch's
_AHEAD_CYCLES = 150_000  # the device waits so long for the host to queue a timing's calls: about 80 µs


class Kind(NamedTuple):
    """A kind of product: the matrix's shape, and whether what it makes is added to what is there."""

    outputs: int
    columns: int
    adds: bool = False


Key = tuple[int, Kind]  # rows and kind
Matrices = dict[Kind, list[torch.Tensor]]


class Choice(NamedTuple):
    """How a product is made."""

    product: Product
    algorithm: Algorithm


_chosen: dict[Key, Choice] = {}
_seen: Matrices | None = None


def choice(rows: int, weight: torch.Tensor, *, adds: bool = False) -> Choice | None:
    """What was found to be faster than torch's own way for so many rows; None is torch's way."""
    note(weight, adds=adds)
    return _chosen.get((rows, Kind(weight.shape[0], weight.shape[1], adds)))


def note(weight: torch.Tensor, *, adds: bool = False) -> None:
    """That such products are made, where `matrices_seen` asks."""
    if _seen is not None and len(weight) <= WIDEST:
        _seen.setdefault(Kind(weight.shape[0], weight.shape[1], adds), []).append(weight)


def run(x: torch.Tensor, weight: torch.Tensor, chosen: Choice, onto: torch.Tensor | None = None) -> torch.Tensor:
    """x [M, K], weight [N, K], both with contiguous rows → [M, N]; the sum with `onto` overwrites it."""
    out = x.new_empty(len(x), len(weight)) if onto is None else onto
    chosen.product.run(x, weight, chosen.algorithm, out, adds=onto is not None)
    return out


@contextlib.contextmanager
def matrices_seen() -> Iterator[Matrices]:
    """Inside, the matrices that products are made with are noted by shape."""
    global _seen
    seen: Matrices = {}
    _seen = seen
    try:
        yield seen
    finally:
        _seen = None


def tune(matrices: Matrices, sizes: Sequence[int], kept: Path | None = None, *, many: int = 0) -> int:
    """Choose for every number of rows and kind of product. Returns how many products had to be timed.

    Args:
        matrices: bfloat16 on one device, by kind.
        sizes: numbers of rows.
        many: products that add are made for more rows than this only.
        kept: a file of earlier choices, read first and then written; what it lacks is timed.
    """
    if not matrices:
        return 0
    name = f"{card(next(iter(matrices.values()))[0].device)}, cuBLASLt {cublaslt.version()}"
    known = {key: words for key, words in kept_choices.read(kept, name).items() if _is_algorithm(words)}
    wanted: list[Key] = [(rows, kind) for kind in matrices for rows in sizes if rows > many or not kind.adds]
    missing = [key for key in wanted if _text(key) not in known]
    timed = _time_all(matrices, missing)
    known.update(timed)
    for key in wanted:
        stored = known[_text(key)]
        if stored is None:
            _chosen.pop(key, None)
            continue
        _chosen[key] = Choice(_product(key), Algorithm.of(stored))
    if timed:
        kept_choices.write(kept, name, timed)
    return len(missing)


def forget() -> None:
    """Go back to torch's way for all."""
    _chosen.clear()


def _time_all(matrices: Matrices, keys: Sequence[Key]) -> dict[str, list[int] | None]:
    """Each key's fastest algorithm, None where it is torch's way. Queues everything and waits once."""
    timings: dict[Key, list[tuple[list[int] | None, _Timing]]] = {}
    for key in keys:
        rows, kind = key
        weights = matrices[kind][:CALLS]
        x = torch.randn(rows, kind.columns, dtype=torch.bfloat16, device=weights[0].device)
        out = x.new_zeros(rows, kind.outputs)
        product = _product(key)

        def torch_way(
            weight: torch.Tensor, x: torch.Tensor = x, out: torch.Tensor = out, adds: bool = kind.adds
        ) -> None:
            if adds:
                out.addmm_(x, weight.t())
            else:
                torch.nn.functional.linear(x, weight)

        entries = [(None, _Timing(torch_way, weights)), (None, _Timing(torch_way, weights))]  # the first warms up
        found: list[tuple[list[int] | None, _Timing]] = [entries[1]]
        for algorithm in product.algorithms(CANDIDATES):

            def our_way(
                weight: torch.Tensor,
                x: torch.Tensor = x,
                out: torch.Tensor = out,
                product: Product = product,
                algorithm: Algorithm = algorithm,
                adds: bool = kind.adds,
            ) -> None:
                product.run(x, weight, algorithm, out, adds=adds)

            with contextlib.suppress(CublasLtError):
                found.append(([int(part) for part in algorithm.algo], _Timing(our_way, weights)))
        timings[key] = found
    torch.cuda.synchronize()
    return {_text(key): _fastest(found) for key, found in timings.items()}


def _fastest(found: list[tuple[list[int] | None, _Timing]]) -> list[int] | None:
    usual = found[0][1].milliseconds()
    algorithm, timing = min(found, key=lambda entry: entry[1].milliseconds())
    return algorithm if timing.milliseconds() < WORTH * usual else None


class _Timing:
    """Queues calls between two events."""

    def __init__(self, call: Callable[[torch.Tensor], None], weights: Sequence[torch.Tensor]):
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_AHEAD_CYCLES)
        call(weights[-1])
        self._start.record()
        for i in range(CALLS):
            call(weights[i % len(weights)])
        self._end.record()

    def milliseconds(self) -> float:
        return float(self._start.elapsed_time(self._end))


def _product(key: Key) -> Product:
    rows, kind = key
    return Product.of(rows, kind.outputs, kind.columns, torch.bfloat16)


def _text(key: Key) -> str:
    rows, kind = key
    return f"{rows}x{kind.outputs}x{kind.columns}{'+' if kind.adds else ''}"


def _is_algorithm(words: object) -> bool:
    """Eight words, or None for torch's way."""
    return words is None or (
        isinstance(words, list) and len(words) == 8 and all(type(word) is int and 0 <= word < 1 << 64 for word in words)
    )
