"""Random weights: the same for the same seed and name, and of a size that a model survives."""

from __future__ import annotations

import pytest
import torch

from octavo.errors import ModelFileError
from octavo.weights.dummy import DummySource


def test_a_tensor_depends_on_seed_and_name_only() -> None:
    one, again, other = DummySource(7), DummySource(7), DummySource(8)
    again.get("b.weight", (5, 5))  # what was asked for before does not matter
    a = one.get("a.weight", (64, 100))
    assert torch.equal(a, again.get("a.weight", (64, 100)))
    assert not torch.equal(a, other.get("a.weight", (64, 100)))
    assert not torch.equal(a, one.get("b.weight", (64, 100)))


def test_values_are_those_of_a_fresh_model() -> None:
    source = DummySource(0)
    weights = source.get("model.layers.0.mlp.up_proj.weight", (500, 400))
    assert weights.dtype == torch.float32
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(weights.mean().item()) < 2e-4
    assert torch.equal(source.get("model.layers.0.input_layernorm.weight", (9,)), torch.ones(9))
    assert torch.equal(source.get("model.norm.weight", (9,)), torch.ones(9))


def test_a_shape_is_needed() -> None:
    source = DummySource(0)
    assert "anything" in source and source.names() == []
    with pytest.raises(ModelFileError, match=r"'a\.weight'"):
        source.get("a.weight")
