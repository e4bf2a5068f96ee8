"""Choices that were measured at one start, for the next: a small JSON file, by card and library."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

_MOST_BYTES = 4 << 20

Entries = dict[str, Any]


def card(device: torch.device) -> str:
    """What choices hold for: the card's name and torch with its libraries."""
    return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"


def read(path: Path | None, name: str) -> Entries:
    """What was kept under a name. A file that is missing, broken or not ours holds nothing."""
    found = _read_all(path).get(name)
    return found if isinstance(found, dict) else {}


def write(path: Path | None, name: str, entries: Entries) -> None:
    """Keep the entries beside what others kept; the file is replaced as a whole. What cannot be kept is logged."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        everything = _read_all(path) | {name: read(path, name) | entries}
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
            json.dump(everything, file)
        os.replace(file.name, path)
    except OSError as error:
        logger.info("the choices are not kept: %s", error)


def _read_all(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        if path.stat().st_size > _MOST_BYTES:
            return {}
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
