"""`octavo rm`."""

from __future__ import annotations

import click

from octavo.cli.verbs import verb


@verb("rm")
@click.argument("name")
def rm(name: str) -> None:
    """Remove the model NAME from the cache. Models in folders of your own are left alone."""
    from octavo.weights.resolve import remove

    click.echo(f"removed {remove(name)}")
