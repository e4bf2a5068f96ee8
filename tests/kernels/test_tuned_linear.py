"""What was chosen at one start is read at the next; a file that is not ours is no harm. Timing needs a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.kernels import tuned_linear
from octavo.kernels.cublaslt import Product
from octavo.kernels.tuned_linear import choice, forget, tune

WORDS = [1, 2, 3, 4, 5, 6, 7, (1 << 64) - 1]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands in for the device: odd numbers of rows are better served by an algorithm."""
    keys: list[Any] = []

    def time_all(matrices: Any, missing: Any) -> dict[str, list[int] | None]:
        keys.extend(missing)
        return {tuned_linear._text(key): WORDS if key[0] % 2 else None for key in missing}

    monkeypatch.setattr(tuned_linear, "_time_all", time_all)
    monkeypatch.setattr(tuned_linear, "_name", lambda device: "a card")
    monkeypatch.setattr(Product, "of", lambda *key: key)
    yield keys
    forget()


def test_choices_are_kept_and_only_what_is_new_is_timed(timed: list[Any], tmp_path: Path) -> None:
    kept, weight = tmp_path / "deep" / "products.json", torch.zeros(8, 4)
    assert tune({(8, 4): [weight]}, [17, 18], kept) == 2
    assert choice(18, weight) is None
    found = choice(17, weight)
    assert found is not None
    assert list(found.algorithm.algo) == WORDS
    forget()
    assert choice(17, weight) is None
    assert tune({(8, 4): [weight]}, [17, 18, 19], kept) == 1
    assert choice(17, weight) is not None
    assert timed == [(17, 8, 4), (18, 8, 4), (19, 8, 4)]
    assert [path.name for path in kept.parent.iterdir()] == ["products.json"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a card": {"17x8x4": [1, 2]}}', '{"a card": {"17x8x4": "x"}}'])
def test_a_broken_file_is_replaced(content: str, timed: list[Any], tmp_path: Path) -> None:
    kept = tmp_path / "products.json"
    kept.write_text(content)
    assert tune({(8, 4): [torch.zeros(8, 4)]}, [17], kept) == 1
    assert json.loads(kept.read_text()) == {"a card": {"17x8x4": WORDS}}


def test_a_folder_that_cannot_be_written_costs_only_the_keeping(timed: list[Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert tune({(8, 4): [torch.zeros(8, 4)]}, [17], tmp_path / "file" / "products.json") == 1
    assert choice(17, torch.zeros(8, 4)) is not None
