"""Grammars are tried in children: what takes too long is killed, what was tried is kept, what is wrong is named."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from octavo.errors import InvalidRequestError
from octavo.grammar.checker import GrammarChecker
from octavo.grammar.vocabulary import Vocabulary
from octavo.request import StructuredOutputs
from tests.patience import BUSY

VOCABULARY = Vocabulary([bytes([i]) for i in range(256)] + [b"<end>"], [256], [256])


def compilers() -> set[psutil.Process]:
    return {p for p in psutil.Process().children() if "octavo.grammar.compiler_process" in p.cmdline()}


@pytest.fixture
def others() -> set[psutil.Process]:
    """Compilers of models that other tests have loaded."""
    return compilers()


@pytest.fixture
def checker(others: set[psutil.Process]) -> Iterator[GrammarChecker]:
    made = GrammarChecker(lambda: VOCABULARY, timeout=5.0, workers=1, cache_size=2)
    yield made
    made.close()
    assert compilers() == others


def test_a_verdict_is_remembered_and_the_oldest_forgotten(checker: GrammarChecker) -> None:
    first = StructuredOutputs(regex="a+")
    assert not checker.knows(first)
    grammar = checker.check(first)
    assert checker.check(first) == grammar and checker.knows(first)
    assert (checker.num_compiled, checker.num_hits) == (1, 1)
    for pattern in ("b", "c"):
        checker.check(StructuredOutputs(regex=pattern))
    assert not checker.knows(first)


@pytest.mark.security("A19")
def test_what_takes_too_long_is_killed_within_the_limit_and_the_next_one_is_served(others: set[psutil.Process]) -> None:
    """A child that hangs is stood in for by one that is stopped: the limit must not depend on what it hangs in."""
    checker = GrammarChecker(lambda: VOCABULARY, timeout=0.5, workers=1)
    try:
        checker.check(StructuredOutputs(regex="a"))
        (child,) = compilers() - others
        child.suspend()
        start = time.monotonic()
        with pytest.raises(InvalidRequestError, match=r"more than 0\.5 seconds"):
            checker.check(StructuredOutputs(regex="b"))
        assert time.monotonic() - start < 1.5 * BUSY
        assert not child.is_running()
        assert checker.check(StructuredOutputs(regex="c"))
    finally:
        checker.close()


def test_a_child_that_dies_costs_one_request(checker: GrammarChecker, others: set[psutil.Process]) -> None:
    checker.check(StructuredOutputs(regex="a"))
    (child,) = compilers() - others
    child.kill()
    child.wait()
    assert checker.check(StructuredOutputs(regex="b"))


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (StructuredOutputs(), "exactly one"),
        (StructuredOutputs(regex="a", choice=("b",)), "exactly one"),
        (StructuredOutputs(regex="("), "unclosed group"),
        (StructuredOutputs(regex="(a{1000}){1000}"), "repetitions"),
        (StructuredOutputs(regex="a" * 5000), "more than 4096"),
        (StructuredOutputs(choice=tuple("ab" * 501)), "at most 1000"),
        (StructuredOutputs(grammar='root ::= "a" nowhere'), "nowhere"),
        (StructuredOutputs(grammar="x" * 70000), "more than 65536"),
        (StructuredOutputs(json={"type": "strin"}), "strin"),
        (StructuredOutputs(json={"type": "array", "uniqueItems": True}), "uniqueItems"),
        (StructuredOutputs(json={"$ref": "#"}), "cannot be kept"),
        (StructuredOutputs(json={"$ref": "http://127.0.0.1/x"}), "into itself"),
        (StructuredOutputs(json={"type": "string", "pattern": "((a{99}){99}){99}"}), "repetitions"),
        (StructuredOutputs(json={"type": "string", "maxLength": 10**9}), "counts go up"),
        (StructuredOutputs(json="{"), "JSON"),
        (StructuredOutputs(json='{"not":' * 100 + "{}" + "}" * 100), "deep"),
        (StructuredOutputs(json={"enum": list(range(2001))}), "2000"),
        (StructuredOutputs(structural_tag={"structures": []}), "needs structures"),
    ],
    ids=str,
)
def test_what_cannot_be_kept_says_why(checker: GrammarChecker, spec: StructuredOutputs, why: str) -> None:
    start = time.monotonic()
    with pytest.raises(InvalidRequestError, match=why) as caught:
        checker.check(spec)
    assert caught.value.param == "structured_outputs" and caught.value.fix
    assert time.monotonic() - start < 20 * BUSY


def test_a_schema_that_multiplies_out_is_ended_and_others_are_served(checker: GrammarChecker) -> None:
    """All of 24 times any of three: 3^24 combinations, if they were written out."""
    parts = [
        {"anyOf": [{"type": "object", "properties": {f"p{i}": {"const": j}}, "required": [f"p{i}"]} for j in range(3)]}
        for i in range(24)
    ]
    start = time.monotonic()
    with pytest.raises(InvalidRequestError, match="cannot be kept"):
        checker.check(StructuredOutputs(json={"allOf": parts}))
    assert time.monotonic() - start < 15 * BUSY
    assert checker.check(StructuredOutputs(regex="a"))


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, checker: GrammarChecker) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(InvalidRequestError, match=r"octavo\[grammar\]"):
        checker.check(StructuredOutputs(regex="a"))
