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
    """As in `octavo list | head -n 1`; the verb writes more than a pipe holds."""
    code = (
        "import sys; from octavo.cli import app; import octavo.cli.version as verb\n"
        "verb.version.callback = lambda: print('x' * (1 << 20), flush=True)\n"
        "sys.exit(app.main(['version']))"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout.read(1) == b"x"
    writer.stdout.close()
    assert writer.wait(30) == 1
    assert writer.stderr.read() == b""
    writer.stderr.close()
