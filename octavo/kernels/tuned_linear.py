"""Which of cuBLASLt's algorithms, or of our own tiles, multiplies so many rows by such a matrix: tried when the engine
starts, then kept.

cuBLAS's own choice is near the best for most numbers of rows and far from it for some: 448 rows of Llama 3.1 8B's
widest matrix take 291 µs with it and 159 µs with its heuristics' third choice (benchmarks/gpu_mid_gemm.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from octavo.kernels import cublaslt, kept_choices
from octavo.kernels.cublaslt import Algorithm, CublasLtError, Product
from octavo.kernels.kept_choices import card
from octavo.kernels.silu_and_mul import silu_and_mul
from octavo.kernels.timing import CALLS, WORTH, Rounds, best_milliseconds, queue_rounds

if TYPE_CHECKING:
    from octavo.kernels.triton.gated_linear import GatedTile

CANDIDATES = 8
ROUNDS = 2
WIDEST = 1 << 16  # outputs; wider ones, of heads, take long to try and have tiles for every multiprocessor
_AHEAD_CYCLES = 150_000  # the device waits so long for the host to queue a timing's calls: about 80 µs

After = Literal["", "+", "gate"]
"""What is done with a product: nothing, it is added to what is there, or its odd columns are gated by the even ones."""


class Kind(NamedTuple):
    """A kind of product: the matrix's shape, and what follows."""

    outputs: int
    columns: int
    after: After = ""


Key = tuple[int, Kind]  # rows and kind
Matrices = dict[Kind, list[torch.Tensor]]
KeptWay = list[int] | str | None
"""A way as it is kept: an algorithm's eight words, a tile's name, or None for torch's way."""


class Choice(NamedTuple):
    """How a product is made: by an algorithm of cuBLASLt, or a tile of the kernel that does the gate too."""

    product: Product | None
    algorithm: Algorithm | None
    tile: GatedTile | None = None


_chosen: dict[Key, Choice] = {}
_seen: Matrices | None = None


def choice(rows: int, weight: torch.Tensor, after: After = "") -> Choice | None:
    """What was found to be faster than torch's own way for so many rows; None is torch's way."""
    note(weight, after)
    return _chosen.get((rows, Kind(weight.shape[0], weight.shape[1], after)))


def note(weight: torch.Tensor, after: After = "") -> None:
    """That such products are made, where `matrices_seen` asks."""
    if _seen is not None and len(weight) <= WIDEST:
        _seen.setdefault(Kind(weight.shape[0], weight.shape[1], after), []).append(weight)


def run(x: torch.Tensor, weight: torch.Tensor, chosen: Choice | None, onto: torch.Tensor | None = None) -> torch.Tensor:
    """x [M, K], weight [N, K], both with contiguous rows → [M, N]; the sum with `onto` overwrites it."""
    if chosen is None or chosen.product is None or chosen.algorithm is None:
        return torch.nn.functional.linear(x, weight) if onto is None else onto.addmm_(x, weight.t())
    out = x.new_empty(len(x), len(weight)) if onto is None else onto
    chosen.product.run(x, weight, chosen.algorithm, out, adds=onto is not None)
    return out


def run_gated(x: torch.Tensor, weight: torch.Tensor, chosen: Choice | None) -> torch.Tensor:
    """x [M, K], weight [2 I, K] with rows gate, up, gate, up... → silu(gate) * up, [M, I]."""
    if chosen is not None and chosen.tile is not None:
        from octavo.kernels.triton.gated_linear import gated_linear

        return gated_linear(x, weight, tile=chosen.tile, pdl=True)
    return silu_and_mul(run(x, weight, chosen), pairs=True)


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
        kept: a file of earlier choices, read first and then written; what it lacks is timed.
        many: products that add are made for more rows than this only, those that are gated for at most so many.
    """
    if not matrices:
        return 0
    name = f"{card(next(iter(matrices.values()))[0].device)}, cuBLASLt {cublaslt.version()}"
    known = {key: way for key, way in kept_choices.read(kept, name).items() if _is_way(way)}
    wanted: list[Key] = [
        (rows, kind)
        for kind in matrices
        for rows in sizes
        if kind.after == "" or (rows > many if kind.after == "+" else rows <= many)
    ]
    missing = [key for key in wanted if _text(key) not in known]
    timed = _time_all(matrices, missing)
    known.update(timed)
    for key in wanted:
        way = known[_text(key)]
        if way is None:
            _chosen.pop(key, None)
        else:
            _chosen[key] = _choice_of(key, way)
    if timed:
        kept_choices.write(kept, name, timed)
    return len(missing)


def forget() -> None:
    """Go back to torch's way for all."""
    _chosen.clear()


def _time_all(matrices: Matrices, keys: Sequence[Key]) -> dict[str, KeptWay]:
    """Each key's fastest way, None where it is torch's. Queues everything and waits once."""
    timings: dict[Key, list[tuple[KeptWay, Rounds]]] = {}
    for key in keys:
        rows, kind = key
        weights = matrices[kind][:CALLS]
        x = torch.randn(rows, kind.columns, dtype=torch.bfloat16, device=weights[0].device)
        out = x.new_zeros(rows, kind.outputs) if kind.after == "+" else None
        ways: list[KeptWay] = [None, None]  # the first warms up
        ways += [algorithm.words for algorithm in _product(key).algorithms(CANDIDATES)]
        ways += list(_tiles()) if kind.after == "gate" else []
        found = timings[key] = []
        for way in ways:
            chosen = None if way is None else _choice_of(key, way)

            def call(
                weight: torch.Tensor,
                x: torch.Tensor = x,
                out: torch.Tensor | None = out,
                chosen: Choice | None = chosen,
                gated: bool = kind.after == "gate",
            ) -> None:
                if gated:
                    run_gated(x, weight, chosen)
                else:
                    run(x, weight, chosen, out)

            with contextlib.suppress(CublasLtError):
                found.append((way, queue_rounds(call, weights, ROUNDS, _AHEAD_CYCLES)))
    torch.cuda.synchronize()
    return {_text(key): _fastest(found[1:]) for key, found in timings.items()}


def _fastest(found: list[tuple[KeptWay, Rounds]]) -> KeptWay:
    took = [best_milliseconds(rounds) for _, rounds in found]
    best = min(range(len(found)), key=took.__getitem__)
    return found[best][0] if took[best] < WORTH * took[0] else None


def _product(key: Key) -> Product:
    rows, kind = key
    return Product.of(rows, kind.outputs, kind.columns, torch.bfloat16)


def _choice_of(key: Key, way: list[int] | str) -> Choice:
    if isinstance(way, str):
        return Choice(None, None, _tiles()[way])
    return Choice(_product(key), Algorithm.of(way))


def _tiles() -> dict[str, GatedTile]:
    from octavo.kernels.triton.gated_linear import EVERY_TILE

    return {f"{tile.rows}x{tile.outputs}x{tile.columns}": tile for tile in EVERY_TILE}


def _text(key: Key) -> str:
    rows, kind = key
    return " ".join(part for part in (f"{rows}x{kind.outputs}x{kind.columns}", kind.after) if part)


def _is_way(way: object) -> bool:
    """Eight words, the name of a tile, or None for torch's way."""
    if isinstance(way, str):
        return way in _tiles()
    return way is None or cublaslt.are_words(way)
