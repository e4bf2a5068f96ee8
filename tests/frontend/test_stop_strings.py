"""Stop strings across the borders of pieces, against an oracle that looks at the whole text."""

from __future__ import annotations

import time

import pytest
from frontend_help import settings
from hypothesis import given
from hypothesis import strategies as st

from octavo.frontend.stop_strings import StopChecker, stop_automaton
from tests.patience import BUSY

alphabet = st.text(alphabet="ab\n]é", min_size=1, max_size=6)
stop_sets = st.lists(alphabet, min_size=1, max_size=5).map(tuple)
pieces = st.lists(st.text(alphabet="ab\n]é", max_size=5), max_size=25)


def first_match(text: str, stops: tuple[str, ...]) -> tuple[int, str] | None:
    """Where a stop string is first complete, and the longest one that is complete there."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return end, max(found, key=len)
    return None


def longest_begun(text: str, stops: tuple[str, ...]) -> int:
    """Length of the longest suffix that a stop string properly begins with."""
    return max(
        (k for k in range(1, len(text) + 1) if any(len(s) > k and s.startswith(text[-k:]) for s in stops)), default=0
    )


@settings
@given(pieces, stop_sets, st.booleans())
def test_output_is_cut_at_the_first_match_however_the_text_is_cut(
    parts: list[str], stops: tuple[str, ...], include: bool
) -> None:
    checker = StopChecker(stop_automaton(stops), include)
    out = "".join(checker.feed(part) for part in parts) + checker.flush()
    whole = "".join(parts)
    match = first_match(whole, stops)
    if match is None:
        assert (out, checker.matched) == (whole, None)
    else:
        end, stop = match
        assert checker.matched == stop
        assert out == whole[: end if include else end - len(stop)]


@settings
@given(pieces, stop_sets)
def test_exactly_what_may_become_a_stop_string_is_held_back(parts: list[str], stops: tuple[str, ...]) -> None:
    checker = StopChecker(stop_automaton(stops))
    out = seen = ""
    for part in parts:
        out, seen = out + checker.feed(part), seen + part
        if checker.matched is not None:
            return
        held = longest_begun(seen, stops)
        assert checker.num_held == held
        assert out == seen[: len(seen) - held]


def test_after_a_match_nothing_comes() -> None:
    checker = StopChecker(stop_automaton(("stop",)))
    assert checker.feed("go st") == "go "
    assert checker.feed("op here") == ""
    assert (checker.feed("more"), checker.flush(), checker.matched) == ("", "", "stop")


@pytest.mark.parametrize("special", ["]", "^", "\\", "-", "[", ".", "(", "\n", "]^-\\"])
def test_characters_with_a_meaning_in_patterns_are_plain(special: str) -> None:
    checker = StopChecker(stop_automaton((special,)))
    assert checker.feed("ab" + special + "cd") == "ab"
    assert checker.matched == special


def test_long_stop_strings_cost_no_more_a_character() -> None:
    stops = tuple("a" * 255 + chr(98 + i) for i in range(16))
    checker = StopChecker(stop_automaton(stops))
    start = time.perf_counter()
    out = "".join(checker.feed("a" * 7) for _ in range(2000))
    assert time.perf_counter() - start < 2.0 * BUSY  # each character once: some milliseconds
    assert checker.num_held == 255
    assert out + checker.flush() == "a" * 14000
