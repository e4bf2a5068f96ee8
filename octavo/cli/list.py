"""`octavo list`."""

from __future__ import annotations

import click

from octavo.cli.verbs import verb


@verb("list")
def list_models() -> None:
    """Show the models that are here, and those that have a short name."""
    from octavo.weights.resolve import list_models as entries

    rows = [("NAME", "SIZE", "WHERE")]
    rows += [(row.name, size(row.size), str(row.path or f"not here yet: {row.summary}")) for row in entries()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, amount, where in rows:
        click.echo(f"{name:<{widths[0]}}  {amount:>{widths[1]}}  {where}")


def size(count: int) -> str:
    """Bytes as people read them."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
