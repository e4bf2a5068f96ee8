"""The Hugging Face hub: what is asked of it, and each of its failures as one error with a fix. No network is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from octavo.errors import ModelNotFoundError
from octavo.weights.resolve import resolve

Calls = list[tuple[str, tuple[Any, ...], dict[str, Any]]]


@pytest.fixture(autouse=True)
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What was asked of the hub, which answers with a path; the cache and the current folder are empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "home"))
    seen: Calls = []
    for name in ("snapshot_download", "hf_hub_download"):

        def answer(*args: Any, _name: str = name, **options: Any) -> str:
            seen.append((_name, args, options))
            return "/hub/path"

        monkeypatch.setattr(huggingface_hub, name, answer)
    return seen


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*args: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)


def test_a_repository_is_taken_without_code_and_pickles(calls: Calls) -> None:
    assert resolve("owner/name", revision="v1.0") == Path("/hub/path")
    [(function, args, options)] = calls
    assert (function, args, options["revision"]) == ("snapshot_download", ("owner/name",), "v1.0")
    assert options["local_files_only"] is False
    assert options["allow_patterns"] == ["*.safetensors", "*.json", "tokenizer.model", "*.jinja"]


def test_one_gguf_file_of_a_repository(calls: Calls) -> None:
    assert resolve("owner/name-GGUF/name.Q4_K_M.gguf") == Path("/hub/path")
    [(function, args, options)] = calls
    assert (function, args) == ("hf_hub_download", ("owner/name-GGUF", "name.Q4_K_M.gguf"))
    assert options == {"revision": None, "local_files_only": False}


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "modeling.py", "model.gguf.py"])
def test_no_other_file_can_be_asked_for(calls: Calls, file: str) -> None:
    with pytest.raises(ModelNotFoundError, match="cannot be the name of a model"):
        resolve(f"owner/name/{file}")
    assert calls == []


def test_a_mistyped_local_file_is_not_looked_for_on_the_hub(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "here" / "my" / "models").mkdir(parents=True)
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        resolve("my/models/typo.gguf")
    for name in ("typo.gguf", "models/typo.gguf", "./a/typo.gguf", "/a/typo.gguf"):
        with pytest.raises(ModelNotFoundError, match="does not exist"):
            resolve(name)
    assert calls == []


def test_offline_asks_the_hubs_cache_only(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("owner/name", offline=True) == Path("/hub/path")
    assert resolve("owner/name/file.gguf", offline=True) == Path("/hub/path")
    assert [options["local_files_only"] for _, _, options in calls] == [True, True]
    failing(monkeypatch, LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder"))
    with pytest.raises(ModelNotFoundError, match="not in the hub's cache") as caught:
        resolve("owner/name", offline=True)
    assert caught.value.fix == "Run: octavo pull owner/name"


@pytest.mark.parametrize("revision", ["../../x", "/etc", "a\\b", "a\0", "", "-x", "a" * 500, "a b", "a/../b"])
def test_hostile_revisions_are_refused(calls: Calls, revision: str) -> None:
    with pytest.raises(ModelNotFoundError, match="cannot be a revision"):
        resolve("owner/name", revision=revision)
    assert calls == []


def test_a_revision_means_the_hub(calls: Calls) -> None:
    with pytest.raises(ModelNotFoundError, match="has no revisions"):
        resolve("smollm2", revision="main")
    resolve("HuggingFaceTB/SmolLM2-135M-Instruct", revision="refs/pr/7")  # an alias of the catalogue without one
    assert [(args, options["revision"]) for _, args, options in calls] == [
        (("HuggingFaceTB/SmolLM2-135M-Instruct",), "refs/pr/7")
    ]


RESPONSE = httpx.Response(404, request=httpx.Request("GET", "http://hub.invalid/"))


@pytest.mark.parametrize(
    ("error", "named", "fix"),
    [
        (GatedRepoError("no", response=RESPONSE), "is gated", "Accept its terms"),
        (RepositoryNotFoundError("no", response=RESPONSE), "no repository owner/name", "Check the spelling"),
        (RevisionNotFoundError("no such revision", response=RESPONSE), "no such revision", "Check the network"),
        (HfHubHTTPError("502 Bad Gateway", response=RESPONSE), "502 Bad Gateway", "Check the network"),
        (LocalEntryNotFoundError("nothing cached"), "nothing cached", "local path"),
        (httpx.ConnectError("[Errno 111] Connection refused"), "Connection refused", "Check the network"),
        (httpx.ReadTimeout("timed out"), "timed out", "Check the network"),
        (HFValidationError("Repo id must be"), "Repo id must be", "Check the network"),
        (OSError(28, "No space left on device"), "No space left", "Check the network"),
        (OSError(), "OSError", "Check the network"),
        (OSError("x" * 10_000), "xxx", "Check the network"),
    ],
)
def test_each_failure_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, named: str, fix: str
) -> None:
    failing(monkeypatch, error)
    with pytest.raises(ModelNotFoundError, match=named) as caught:
        resolve("owner/name")
    assert fix in caught.value.fix
    assert caught.value.param == "model"
    assert len(str(caught.value)) < 500
    assert caught.value.__cause__ is error
