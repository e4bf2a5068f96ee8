"""Help is quick, complete, and imports nothing heavy."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from octavo.cli.app import main, octavo
from octavo.cli.verbs import VerbGroup

HEAVY = ("torch", "numpy", "rich", "httpx", "transformers", "tokenizers", "yaml")


def all_verbs(group: VerbGroup = octavo, path: tuple[str, ...] = ()):
    context = octavo.make_context("octavo", ["version"])
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name)
        if isinstance(command, VerbGroup):
            yield from all_verbs(command, (*path, name))


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["serve", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys; from octavo.cli.app import main\n"
        f"status = main({arguments!r})\n"
        f"print(status, sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    assert run_python(code).splitlines()[-1] == "0 []"


def cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_help_takes_at_most_300_ms():
    """In CPU time, which other work on the machine does not stretch."""
    seconds = []
    for _ in range(5):
        before = cpu_seconds_of_children()
        subprocess.run([sys.executable, "-m", "octavo.cli", "--help"], capture_output=True, check=True, timeout=60)
        seconds.append(cpu_seconds_of_children() - before)
    assert min(seconds) <= 0.3


@pytest.mark.parametrize("path", list(all_verbs()), ids=" ".join)
def test_every_verb_has_help(path, capsys):
    assert main([*path, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage: octavo " + " ".join(path) in text
    assert len(text.splitlines()) > 5


def test_options_are_shown_under_their_groups(capsys):
    assert main(["serve", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Options:", "Server:", "Model:", "Cache:", "Scheduler:", "Device:"]


@pytest.mark.parametrize(("typed", "meant"), [("serv", "serve"), ("rnu", "run"), ("pul", "pull")])
def test_a_mistyped_verb_gets_the_nearest(typed, meant, capsys):
    assert main([typed]) == 2
    assert f"Did you mean '{meant}'?" in capsys.readouterr().err


def test_a_verb_like_no_other_gets_the_list(capsys):
    assert main(["xyzzy"]) == 2
    assert "There are: run, serve" in capsys.readouterr().err


def test_a_mistyped_flag_gets_the_nearest(capsys):
    assert main(["serve", "--max-model-length", "5"]) == 2
    assert "--max-model-len" in capsys.readouterr().err


def test_version_names_the_parts(capsys):
    assert main(["version"]) == 0
    text = capsys.readouterr().out
    assert "octavo 0." in text
    assert "torch " in text
