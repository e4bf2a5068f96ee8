"""How much host memory pages of preempted sequences may take, by default and at most."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.errors import ConfigError
from octavo.runner.host_memory import host_memory_bytes, swap_bytes

GIB = 1 << 30


@pytest.mark.parametrize(
    ("asked", "device", "available", "expected"),
    [
        (None, "cpu", 500 * GIB, 0),
        (None, "cuda", 500 * GIB, 16 * GIB),
        (None, "cuda", 64 * GIB, 8 * GIB),
        (0, "cuda", 64 * GIB, 0),
        (1.5, "cpu", 2 * GIB, 3 * GIB // 2),
        (40, "cuda", 64 * GIB, 40 * GIB),
    ],
)
def test_swap_space(asked: float | None, device: str, available: int, expected: int) -> None:
    assert swap_bytes(asked, device, available) == expected


def test_more_than_the_host_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"host's memory of 8\.0 GiB") as caught:
        swap_bytes(9, "cuda", 8 * GIB)
    assert caught.value.param == "swap_space"


@pytest.mark.parametrize(
    ("name", "text", "limited"),
    [
        ("memory.max", "1048576\n", True),
        ("memory.max", "max\n", False),
        ("memory/memory.limit_in_bytes", "1048576\n", True),
        ("memory/memory.limit_in_bytes", f"{2**63 - 4096}\n", False),
        ("nothing", "", False),
    ],
)
def test_the_control_group_is_asked(tmp_path: Path, name: str, text: str, limited: bool) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    assert (host_memory_bytes(tmp_path) == 1 << 20) == limited
