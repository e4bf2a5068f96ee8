"""The clients' own virtual environment, made once, and programs run in it that reach nothing but loopback."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "constraints" / "clients.txt"
PROGRAMS = Path(__file__).parent / "clients"

# Each is what the package's own documentation names for it.
QUIET = {
    "ANONYMIZED_TELEMETRY": "False",
    "DO_NOT_TRACK": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class UnavailableError(Exception):
    """The clients cannot be had here; the message says why."""


@dataclass(frozen=True)
class Case:
    """How one test of a suite ended.

    Attributes:
        name: `module.Class.function[parameters]`.
        outcome: passed, failed or skipped.
        message: what was raised, or why it was skipped.
    """

    name: str
    outcome: str
    message: str


class Clients:
    """A Python that has the clients, and programs run with it.

    Args:
        python: the environment's interpreter.
        home: a folder for whatever the programs write.
    """

    def __init__(self, python: Path, home: Path):
        self.python = python
        self._home = home

    def run(self, *command: str, cwd: Path, seconds: float = 200, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `python COMMAND...`.

        Raises:
            AssertionError: it tried to reach another address than loopback (clients/sitecustomize.py did not let it).
        """
        home = str(self._home)
        base = {"PATH": os.environ["PATH"], "HOME": home, "TMPDIR": home, "XDG_CACHE_HOME": home, "LLM_USER_PATH": home}
        done = subprocess.run(
            [str(self.python), *command],
            cwd=cwd,
            env={**base, **QUIET, "PYTHONPATH": str(PROGRAMS), "OPENAI_API_KEY": "none", "LANG": "C.UTF-8", **env},
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        outside = self._home / "reached-for.txt"
        assert not outside.exists(), f"a client wanted to reach {outside.read_text().split()[:5]}"
        return done

    def pytest(self, *arguments: str, cwd: Path, plugins: Sequence[str] = (), **env: str) -> list[Case]:
        """Run pytest in the environment, with no configuration but ours and no plugins but these and two more.

        Raises:
            AssertionError: it ended otherwise than with tests passed or failed; with its output.
        """
        report = self._home / "report.xml"
        report.unlink(missing_ok=True)
        options = ["-q", "--tb=line", "--show-capture=no", "-p", "no:cacheprovider", f"--junitxml={report}"]
        scopes = [f"asyncio_default_{kind}_loop_scope=session" for kind in ("fixture", "test")]
        options += [part for mode in ("asyncio_mode=auto", *scopes) for part in ("-o", mode)]
        options += [part for plugin in ("asyncio", "timeout", *plugins) for part in ("-p", plugin)]
        env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # importing them all takes seconds
        done = self.run(
            "-m",
            "pytest",
            "-c",
            os.devnull,
            f"--rootdir={cwd}",
            f"--confcutdir={cwd}",
            "--timeout=60",
            *options,
            *arguments,
            cwd=cwd,
            **env,
        )
        assert done.returncode in (0, 1) and report.exists(), (done.stdout + done.stderr)[-6000:]
        return _cases(report)


def _cases(report: Path) -> list[Case]:
    found = []
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - written by our own process
        ends = [child for child in case if child.tag in ("failure", "error", "skipped")]
        outcome = "passed" if not ends else "skipped" if ends[0].tag == "skipped" else "failed"
        message = "\n".join(f"{end.get('message', '')}\n{end.text or ''}" for end in ends)
        found.append(Case(f"{case.get('classname')}.{case.get('name')}", outcome, message))
    return found


def make_environment() -> Path:
    """The folder of the clients' environment, made if it is not there: `bin/python`, and `openai-*/tests`.

    Raises:
        UnavailableError: uv is not installed, or the package index did not give what is needed.
    """
    if importlib.util.find_spec("uv") is None:
        raise UnavailableError("the extra octavo[conformance] is not installed")
    folder = ROOT / ".ci" / "clients" / hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]
    done = folder / "complete"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / "lock"):
        if not done.exists():
            for old in folder.parent.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            uv, python = (sys.executable, "-m", "uv"), str(folder / "bin" / "python")
            _command(*uv, "venv", "-q", "--python", sys.executable, str(folder))
            _command(*uv, "pip", "install", "-q", "--no-deps", "--python", python, "-r", str(LOCK))
            _openai_tests(python, folder)
            done.touch()
    return folder


def _openai_tests(python: str, folder: Path) -> None:
    """The tests of the `openai` package come with its source distribution alone."""
    pin = re.search(r"^openai==(\S+)$", LOCK.read_text(), re.MULTILINE)
    assert pin is not None
    options = ["-q", "--no-deps", "--no-build-isolation", "--no-binary", "openai", "-d", str(folder / "sdist")]
    _command(python, "-m", "pip", "download", *options, f"openai=={pin[1]}")
    with tarfile.open(next((folder / "sdist").glob("openai-*.tar.gz"))) as archive:
        tests = [member for member in archive.getmembers() if member.name.split("/")[1:2] == ["tests"]]
        archive.extractall(folder, tests, filter="data")


def _command(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{' '.join(command[1:4])} took longer than {error.timeout} s") from None
    if done.returncode:
        raise UnavailableError(f"{' '.join(command[1:4])} failed: {done.stderr[-600:]}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def unexpected(cases: Sequence[Case], not_ours: Mapping[str, str]) -> list[str]:
    """What is wrong with a suite's result: failures that are not listed, listed names that pass or are nowhere.

    Args:
        not_ours: parts of names, and why a case with it is not ours to pass.
    """
    assert all(not_ours.values()), "a case that is listed has its reason"
    wrong = []
    for case in cases:
        listed = any(part in case.name for part in not_ours)
        if case.outcome == "failed" and not listed:
            wrong.append(f"{case.name} failed: {case.message[-1500:]}")
        if case.outcome == "passed" and listed:
            wrong.append(f"{case.name} passes now: take it from the list")
    unused = [part for part in not_ours if not any(part in case.name for case in cases)]
    return wrong + [f"no case has {part!r} in its name" for part in unused]
