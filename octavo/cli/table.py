"""Result tables of the benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def print_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """A table of two columns, on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


def spread_row(values: Mapping[str, Any], *, digits: int = 1) -> str:
    """Mean, median and 99th percentile in one cell."""
    return " · ".join(f"{name} {values[name]:,.{digits}f}" for name in ("mean", "p50", "p99"))
