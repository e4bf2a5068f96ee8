"""How children are started: with this Python, and without the working directory among the places of modules."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def isolated_python() -> list[str]:
    """The command that `-m module` follows.

    Python looks for modules in the working directory first, so that a file http.py in somebody's folder would be run by
    every child. `-P` leaves it out, unless Octavo itself is found there alone: a checkout that is not installed.
    """
    if sys.flags.safe_path:
        return [sys.executable, "-P"]
    home = Path(__file__).resolve().parents[1]
    first, *others = [Path(place or os.getcwd()).resolve() for place in sys.path] or [home]
    return [sys.executable] if first == home and home not in others else [sys.executable, "-P"]
