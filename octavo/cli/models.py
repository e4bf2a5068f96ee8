"""How the verbs tell a model's name from other words."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

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
    names = [name.lower() for name in known_names()]
    if word.lower() in names or _REPOSITORY.fullmatch(word):
        return True
    return not alone and bool(difflib.get_close_matches(word.lower(), names, 1, 0.75))


def known_names() -> list[str]:
    """Names that need no path: those of the catalogue, and of what is in the cache."""
    from octavo.weights.resolve import list_models

    return [entry.name for entry in list_models()]
