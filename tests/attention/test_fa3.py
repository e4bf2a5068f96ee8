"""Where FA3 is not to be had, asking for it says why; auto does without. What it computes, a GPU shows."""

from __future__ import annotations

import pytest
import torch

from octavo.attention.fa3 import choose_fa3, why_not
from octavo.errors import ConfigError

CPU = torch.device("cpu")
SHAPE = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64, "page_size": 64}


def test_auto_does_without_it_on_a_cpu() -> None:
    assert choose_fa3("auto", CPU, torch.bfloat16, **SHAPE) is None
    assert choose_fa3("triton", CPU, torch.bfloat16, **SHAPE) is None


def test_asking_for_it_where_it_cannot_be_is_an_error_that_says_why() -> None:
    with pytest.raises(ConfigError, match="NVIDIA") as caught:
        choose_fa3("fa3", CPU, torch.bfloat16, **SHAPE)
    assert caught.value.param == "attention_backend"


@pytest.mark.parametrize(
    ("capability", "head_dim", "kv_dtype", "reason"),
    [
        ((8, 0), 128, torch.bfloat16, "Hopper"),
        ((10, 0), 128, torch.bfloat16, "Hopper"),
        ((9, 0), 80, torch.bfloat16, "heads of 80"),
        ((9, 0), 128, torch.float32, "float32"),
        ((9, 0), 128, torch.bfloat16, "tokenspeed-fa3"),
    ],
)
def test_reasons(
    capability: tuple[int, int], head_dim: int, kv_dtype: torch.dtype, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr("octavo.attention.fa3.importlib.import_module", absent)
    assert reason in (why_not(torch.device("cuda"), head_dim, kv_dtype) or "")
