"""Every way of failing ends in one box, and in a status that scripts can use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from octavo.cli.app import main
from octavo.errors import ConfigError, ModelNotFoundError


@pytest.fixture
def failing(monkeypatch):
    """Call it with what `octavo version` shall raise."""

    def fail(error):
        def raise_it():
            raise error

        monkeypatch.setattr("octavo.cli.version.version.callback", raise_it)

    return fail


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ModelNotFoundError("No model 'x'.", fix="Look at `octavo list`."), 3),
        (ConfigError("Not so.", fix="Look at `octavo list`."), 2),
    ],
)
def test_a_known_error_shows_cause_and_fix_once(failing, error, status, capsys):
    failing(error)
    assert main(["version"]) == status
    shown = capsys.readouterr().err
    assert shown.count(error.message) == 1
    assert "octavo list" in shown
    assert error.code in shown
    assert "Traceback" not in shown


def test_the_box_has_a_traceback_only_with_v(failing, capsys):
    failing(ConfigError("Not so."))
    assert main(["version", "-v"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_unexpected_error_says_how_to_see_more(failing, capsys):
    failing(ZeroDivisionError("by zero"))
    assert main(["version"]) == 1
    shown = capsys.readouterr().err
    assert "ZeroDivisionError: by zero" in shown
    assert "-v for the traceback" in shown
    assert "Traceback (most" not in shown


def test_error_text_is_not_markup(failing, capsys):
    failing(ConfigError("A value like [red]x[/red] or [/]."))
    assert main(["version"]) == 2
    assert "[red]x[/red]" in capsys.readouterr().err


def test_ctrl_c_is_quiet(failing, capsys):
    failing(KeyboardInterrupt())
    assert main(["version"]) == 130
    assert capsys.readouterr().err.strip() == ""


def test_a_reader_that_leaves_early_is_no_error():
    code = "import sys; from octavo.cli.app import main; sys.exit(main(['serve', '--help']))"
    done = subprocess.run(
        f'"{sys.executable}" -c "{code}" | head -n 1; exit ${{PIPESTATUS[0]}}',
        executable="/bin/bash",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("Usage")
    assert done.returncode in (0, 141)
