"""The `octavo` command: one file a verb, each imported when it is asked for."""

from __future__ import annotations

from octavo.cli.app import main

__all__ = ["main"]
