"""An engine's process that is started before it is asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from octavo.engine import child
from octavo.engine.child import Child, engine_ahead, start_engine

WAITS_FOR_STDIN = "json.tool"


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Child]]:
    """Every child that is started; they only wait for the end of their stdin."""
    found: list[Child] = []
    start = Child.start

    def noted(module: str, arguments: tuple[str, ...] = ()) -> Child:
        found.append(start(module, arguments))
        return found[-1]

    monkeypatch.setattr(child, "MODEL_ENGINE", WAITS_FOR_STDIN)
    monkeypatch.setattr(Child, "start", noted)
    yield found
    for each in found:
        if each.process.poll() is None:
            each.discard()


def test_the_first_that_is_asked_for_is_the_one_that_waits(started: list[Child]) -> None:
    with engine_ahead():
        first, second = start_engine(WAITS_FOR_STDIN, ()), start_engine(WAITS_FOR_STDIN, ())
        assert started == [first, second]
    assert first.process.poll() is None and second.process.poll() is None
    assert first.by_main_thread


def test_one_that_nobody_took_ends(started: list[Child]) -> None:
    with pytest.raises(ValueError, match="a flag"), engine_ahead():
        raise ValueError("a flag")
    assert len(started) == 1
    assert started[0].process.poll() is not None


def test_one_that_has_ended_is_not_taken(started: list[Child]) -> None:
    with engine_ahead():
        started[0].process.kill()
        started[0].process.wait()
        taken = start_engine(WAITS_FOR_STDIN, ())
        assert taken is started[1] and taken.process.poll() is None


def test_another_program_is_not_it(started: list[Child]) -> None:
    with engine_ahead():
        assert start_engine("tokenize", ()) is started[1]
        assert start_engine(WAITS_FOR_STDIN, ("--sort-keys",)) is started[2]
    assert started[0].process.poll() is not None


def test_it_knows_which_thread_started_it() -> None:
    found: list[Child] = []
    thread = threading.Thread(target=lambda: found.append(start_engine(WAITS_FOR_STDIN, ())))
    thread.start()
    thread.join()
    assert not found[0].by_main_thread
