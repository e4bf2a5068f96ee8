"""`octavo version`."""

from __future__ import annotations

import importlib.metadata
import platform

import click

from octavo import __version__
from octavo.cli.verbs import verb

_PARTS = ("torch", "numpy", "tokenizers", "msgspec", "uvicorn")


@verb("version")
def version() -> None:
    """Print the versions of Octavo and of what it runs on."""
    click.echo(f"octavo {__version__}")
    click.echo(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in _PARTS:
        try:
            click.echo(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            click.echo(f"{name} is not installed")
