"""One live server with the default model, and the clients that are pointed at it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conformance.environment import Clients, UnavailableError, make_environment
from tests.patience import BUSY

MAX_TOKENS = 48
"""Where a request names no bound: the default model may ramble for thousands of tokens."""

NAMES = (
    "SmolLM2-135M-Instruct",
    "gpt-6-astra",  # this and the next ones are written in openai's tests
    "gpt-3.5-turbo-instruct",
    "text-embedding-3-small",
    "model",
    "ft:gpt-4o-mini:acemeco:suffix:abc123",
    "gpt-4o-mini",
)


def needs(server: str, path: str) -> None:
    """Skip the test where the server has no such route."""
    if httpx.get(server + path).status_code == 404:
        pytest.skip(f"the server has no {path}")


@pytest.fixture(scope="session")
def clients_folder() -> Path:
    try:
        return make_environment()
    except UnavailableError as error:
        pytest.skip(f"the clients cannot be had here: {error}")


@pytest.fixture
def clients(clients_folder: Path, tmp_path: Path) -> Clients:
    return Clients(clients_folder / "bin" / "python", tmp_path)


@pytest.fixture(scope="session")
def server(smollm2_gguf: Path, clients_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL, without /v1, of `octavo serve`."""
    log = tmp_path_factory.mktemp("conformance") / "server.log"
    names = [part for name in NAMES for part in ("--served-model-name", name)]
    limits = ["--threads", "1", "--max-model-len", "4096", "--default-max-tokens", str(MAX_TOKENS)]
    command = [sys.executable, "-m", "octavo.cli", "serve", str(smollm2_gguf), "--port", "0", *names, *limits]
    with log.open("w") as output:
        process = subprocess.Popen([*command, "--enable-tokenizer-info-endpoint"], stderr=output)
    try:
        end = time.monotonic() + 10 * BUSY
        while not (found := re.search(r"ready after.*(http://127\.0\.0\.1:\d+)/v1", log.read_text())):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield found[1]
        assert process.poll() is None, log.read_text()[-4000:]
        errors = [line for line in log.read_text().splitlines() if " ERROR " in line or "Traceback" in line]
        assert not errors, "\n".join(errors)
    finally:
        process.terminate()
        try:
            process.wait(3 * BUSY)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
