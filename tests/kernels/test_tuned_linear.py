"""What was chosen at one start is read at the next; a file that is not ours is no harm. Timing needs a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.kernels import tuned_fp8, tuned_linear
from octavo.kernels.cublaslt import Product
from octavo.kernels.tuned_fp8 import LtAlgorithm, Stored
from octavo.kernels.tuned_linear import Kind, choice, forget, matrices_seen, note, tune

WORDS = [1, 2, 3, 4, 5, 6, 7, (1 << 64) - 1]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands in for the device: odd numbers of rows are better served by an algorithm."""
    keys: list[Any] = []

    def time_all(matrices: Any, missing: Any) -> dict[str, list[int] | None]:
        keys.extend(missing)
        return {tuned_linear._text(key): WORDS if key[0] % 2 else None for key in missing}

    monkeypatch.setattr(tuned_linear, "_time_all", time_all)
    monkeypatch.setattr(tuned_linear, "card", lambda device: "a card")
    monkeypatch.setattr(tuned_linear.cublaslt, "version", lambda: 1)
    monkeypatch.setattr(Product, "of", lambda *key: key)
    yield keys
    forget()


def test_choices_are_kept_and_only_what_is_new_is_timed(timed: list[Any], tmp_path: Path) -> None:
    kept, weight = tmp_path / "deep" / "products.json", torch.zeros(8, 4)
    assert tune({Kind(8, 4): [weight]}, [17, 18], kept) == 2
    assert choice(18, weight) is None
    found = choice(17, weight)
    assert found is not None
    assert list(found.algorithm.algo) == WORDS
    forget()
    assert choice(17, weight) is None
    assert tune({Kind(8, 4): [weight]}, [17, 18, 19], kept) == 1
    assert choice(17, weight) is not None
    assert timed == [(rows, Kind(8, 4)) for rows in (17, 18, 19)]
    assert [path.name for path in kept.parent.iterdir()] == ["products.json"]


def test_products_that_add_or_are_gated_are_chosen_apart(timed: list[Any], tmp_path: Path) -> None:
    weight = torch.zeros(8, 4)
    with matrices_seen() as seen:
        choice(17, weight)
        note(weight, "+")
        choice(17, weight, "gate")
    adds, gated = Kind(8, 4, "+"), Kind(8, 4, "gate")
    assert list(seen) == [Kind(8, 4), adds, gated]
    assert tune(seen, [17, 33], tmp_path / "products.json", many=20) == 4
    assert timed == [(17, Kind(8, 4)), (33, Kind(8, 4)), (33, adds), (17, gated)]
    assert choice(33, weight, "+") is not None and choice(17, weight, "gate") is not None
    assert choice(17, weight, "+") is None


def test_tiles_of_our_own_are_kept_by_name(timed: list[Any], tmp_path: Path) -> None:
    tiles = pytest.importorskip("octavo.kernels.triton.gated_linear", reason="they are Triton's").EVERY_TILE
    kept, weight = tmp_path / "products.json", torch.zeros(8, 4)
    kept.write_text('{"a card, cuBLASLt 1": {"17x8x4 gate": "64x256x64", "19x8x4 gate": "1x2x3"}}')
    assert tune({Kind(8, 4, "gate"): [weight]}, [17, 19], kept, many=20) == 1
    found = choice(17, weight, "gate")
    assert found is not None and found.tile == tiles[1] and found.algorithm is None
    assert timed == [(19, Kind(8, 4, "gate"))]


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"a card, cuBLASLt 1": {"17x8x4": [1, 2]}}', '{"a card, cuBLASLt 1": {"17x8x4": "x"}}']
)
def test_a_broken_file_is_replaced(content: str, timed: list[Any], tmp_path: Path) -> None:
    kept = tmp_path / "products.json"
    kept.write_text(content.replace("NAME", "a card, cuBLASLt 1"))
    assert tune({Kind(8, 4): [torch.zeros(8, 4)]}, [17], kept) == 1
    assert json.loads(kept.read_text()) == {"a card, cuBLASLt 1": {"17x8x4": WORDS}}


def test_a_folder_that_cannot_be_written_costs_only_the_keeping(timed: list[Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert tune({Kind(8, 4): [torch.zeros(8, 4)]}, [17], tmp_path / "file" / "products.json") == 1
    assert choice(17, torch.zeros(8, 4)) is not None


class Fp8:
    """Stands in for the device: the last candidate is always the fastest, but for an algorithm at 512 rows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.loaded: list[Any] = []
        self.timed: list[Any] = []
        monkeypatch.setattr(tuned_fp8, "card", lambda device: "a card")
        monkeypatch.setattr(tuned_fp8.cublaslt, "version", lambda: 1)
        monkeypatch.setattr(tuned_fp8, "_load", lambda matrices, used, multiply: self.loaded.append(used))
        monkeypatch.setattr(tuned_fp8, "_time_all", self.time_all)
        self.matrices = {(64, 256): [Stored(torch.zeros(64, 256), torch.ones(64), torch.bfloat16)]}

    def time_all(self, matrices: Any, keys: Any, multiply: Any) -> dict[Any, Any]:
        self.timed.extend(keys)
        algorithm = [LtAlgorithm(tuple(WORDS))]
        return {key: tuned_fp8.candidates(key[0], *key[1])[-1:] + algorithm * (key[0] == 512) for key in keys}

    def tune(self, sizes: list[int], kept: Path) -> int:
        return tuned_fp8.tune_fp8(self.matrices, sizes, lambda x, scales, stored, way: x, kept)


@pytest.fixture
def fp8(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("triton", reason="ways of our own are Triton kernels")
    yield Fp8(monkeypatch)
    tuned_fp8._chosen.clear()
    tuned_fp8._exact.clear()


def test_ways_of_fp8_products_are_kept_too(fp8: Fp8, tmp_path: Path) -> None:
    kept = tmp_path / "products.json"
    assert fp8.tune([1, 256, 4096], kept) == 3
    first = tuned_fp8.chosen()
    own = tuned_fp8.candidates(1, 64, 256)[-1]
    assert first == {"1x64x256": repr(own), "256x64x256": "tensor-wise", "4096x64x256": "row-wise"}
    assert fp8.tune([1, 256], kept) == 0
    assert tuned_fp8.chosen() == {name: first[name] for name in ("1x64x256", "256x64x256")}
    assert fp8.loaded[1] == {(1, (64, 256)): [own], (256, (64, 256)): ["tensor-wise"]}


@pytest.mark.parametrize("broken", [[[64] * 6], "row-wise", [], ["row-wise", [1] * 7], ["row-wise", "1"], [None]])
def test_a_way_that_was_not_written_here_is_timed_anew(broken: Any, fp8: Fp8, tmp_path: Path) -> None:
    kept = tmp_path / "products.json"
    kept.write_text(json.dumps({"a card, e4m3, cuBLASLt 1": {"256x64x256": broken}}))
    assert fp8.tune([256], kept) == 1
    assert tuned_fp8.chosen() == {"256x64x256": "tensor-wise"}


def test_an_algorithm_serves_only_the_rows_it_was_timed_with(fp8: Fp8, tmp_path: Path) -> None:
    stored = fp8.matrices[64, 256][0]
    for _ in range(2):  # timed, then read
        fp8.tune([512, 1024], tmp_path / "products.json")
        assert tuned_fp8.choice(512, stored) == LtAlgorithm(tuple(WORDS))
        assert [tuned_fp8.choice(rows, stored) for rows in (511, 513, 1024)] == ["tensor-wise"] * 3
        assert tuned_fp8.choice(1025, stored) is None
    assert fp8.timed == [(512, (64, 256)), (1024, (64, 256))]


class Took:
    """An event, by the time it is passed."""

    def __init__(self, at: float):
        self.at = at

    def elapsed_time(self, other: Took) -> float:
        return other.at - self.at


def timed_way(way: Any, milliseconds: list[float], off: float = 0.0) -> Any:
    return tuned_fp8._Timed(way, [(Took(0.0), Took(took)) for took in milliseconds], torch.tensor(off))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("took", "off", "taken"),
    [
        ([1.0, 0.9], 0.001, True),
        ([0.99, 0.99], 0.001, False),
        ([0.5, 0.5], 0.5, False),
        ([0.5, 0.5], float("nan"), False),
    ],
)
def test_an_algorithm_has_to_be_faster_and_right(took: list[float], off: float, taken: bool) -> None:
    algorithm = LtAlgorithm((1,) * 8)
    found = [timed_way("row-wise", [3.0, 1.0]), timed_way("tensor-wise", [1.1, 1.2]), timed_way(algorithm, took, off)]
    assert tuned_fp8._fastest(found) == ["row-wise", algorithm][: 1 + taken]


class Passed(Took):
    """An event of a device that takes no time."""

    def __init__(self, **options: Any):
        super().__init__(0.0)

    def record(self) -> None:
        pass


@pytest.mark.parametrize("rows", [20, 512, 8192])
def test_every_way_is_compared_with_cublas_s_own_product(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="ways of our own are Triton kernels")
    right, wrong = LtAlgorithm((1,) * 8), LtAlgorithm((2,) * 8)

    def multiply(x: torch.Tensor, scales: torch.Tensor, stored: Stored, way: Any) -> torch.Tensor:
        y = (x.float() * scales) @ stored.weight.float().T
        if way == wrong:
            y[-rows // 3 :] = 0
        return y.bfloat16()

    monkeypatch.setattr(torch.cuda, "Event", Passed)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    monkeypatch.setattr(tuned_fp8, "algorithms", lambda rows, shape: [right, wrong])
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    found = tuned_fp8._queue(rows, [Stored(weight, torch.ones(64), torch.bfloat16)], multiply)
    off = {each.way: float(each.off) < tuned_fp8.AGREES for each in found}
    assert off.pop(wrong) is False
    assert all(off.values()) and right in off and "row-wise" in off
