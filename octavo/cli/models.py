"""How the verbs tell a model's name from other words, and bring it here before torch is imported."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.config import ModelOptions

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_model_name(word: str, *, alone: bool) -> bool:
    """Whether the first word after `octavo run` names a model.

    It does if it is a folder or a .gguf file, has a path's form, is known by name, is owner/name as on a hub, or,
    with a prompt after it, is so near to a known name that it was meant to be one.

    Args:
        alone: no other words follow.
    """
    if not word or any(char.isspace() for char in word):
        return False
    path = Path(word)
    if word.endswith((".gguf", "/")) or path.is_absolute() or word.startswith(("./", "../", "~")) or path.is_dir():
        return True
    names = [name.casefold() for name in known_names()]
    if word.casefold() in names or _REPOSITORY.fullmatch(word):
        return True
    return not alone and bool(difflib.get_close_matches(word.casefold(), names, 1, 0.75))


def known_names() -> list[str]:
    """Names that need no path: those of the catalogue, and of what is in the cache."""
    from octavo.weights.catalogue import CATALOGUE
    from octavo.weights.resolve import list_models

    return [row.name for row in list_models()] + [alias for entry in CATALOGUE for alias in entry.aliases]


def ensure_here(settings: Mapping[str, Any]) -> None:
    """Download the model that these engine settings name, with a progress bar, unless it is here.

    Raises:
        ModelNotFoundError: at once, before seconds go into importing torch.
    """
    from octavo.weights.resolve import resolve

    resolve(settings.get("model", ModelOptions().model), revision=settings.get("revision"))
