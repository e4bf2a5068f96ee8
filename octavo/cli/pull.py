"""`octavo pull`."""

from __future__ import annotations

import click

from octavo.cli.verbs import verb


@verb("pull")
@click.argument("name")
@click.option("--revision", metavar="TEXT", help="Branch, tag or commit, for a Hugging Face repository.")
def pull(name: str, revision: str | None) -> None:
    """Download the model NAME into the cache, unless it is there, and print where it is."""
    from octavo.weights.resolve import resolve

    click.echo(str(resolve(name, revision=revision)))
