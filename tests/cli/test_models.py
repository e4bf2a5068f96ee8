"""`octavo pull`, `list` and `rm` on a cache of the test's own."""

from __future__ import annotations

import pytest

from octavo.cli.app import main
from octavo.cli.list import size
from octavo.cli.models import known_names


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache that holds one model, `mine`."""
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path))
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_pull_prints_where_the_model_is(cache, capsys):
    assert main(["pull", "mine"]) == 0
    assert capsys.readouterr().out.strip() == str(cache)


def test_pull_of_what_no_place_has(cache, capsys):
    assert main(["pull", "Smollm3"]) == 3
    err = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "Did you mean 'smollm2'?" in err


def test_run_fails_at_once_without_the_model(cache, capsys):
    assert main(["run", "--model", "no-such-model", "hi"]) == 3
    assert "no-such-model" in capsys.readouterr().err


def test_list_shows_the_cache_and_the_catalogue(cache, capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "SIZE", "WHERE"]
    assert lines[1].startswith("SmolLM2-135M-Instruct")
    assert "not here yet" in lines[1]
    assert lines[2].split() == ["mine", "2", "B", str(cache)]


def test_rm_removes_from_the_cache_only(cache, tmp_path, capsys):
    assert main(["rm", "mine"]) == 0
    assert not cache.exists()
    assert main(["rm", "mine"]) == 3
    other = tmp_path / "other"
    other.mkdir()
    assert main(["rm", str(other)]) == 3
    assert main(["rm", "../models"]) == 3
    assert other.exists()
    assert "not in the cache" in capsys.readouterr().err


def test_known_names_have_the_aliases_and_the_cache(cache):
    assert {"SmolLM2-135M-Instruct", "smollm2", "mine"} <= set(known_names())


@pytest.mark.parametrize(
    ("count", "text"),
    [(5, "5 B"), (2048, "2 KiB"), (98_362_432, "94 MiB"), (3 << 30, "3.0 GiB")],
)
def test_sizes_are_readable(count, text):
    assert size(count) == text
