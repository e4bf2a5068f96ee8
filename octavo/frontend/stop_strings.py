"""Stop strings in a stream of text, found across the borders of its pieces.

Aho and Corasick, "Efficient string matching" (1975): one automaton for all of a request's stop strings. Its state is
the longest suffix of the text that begins a stop string, and that suffix is exactly what must be held back.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from functools import lru_cache

_CACHED_CHARS = 256  # larger sets of stop strings are not kept between requests


class StopAutomaton:
    """The automaton of some stop strings; shared by all samples that have them.

    State 0 is the empty suffix. `depth[s]` is the length of state s's suffix, `found[s]` the longest stop string
    that ends there, `first` finds a character that begins one.
    """

    __slots__ = ("depth", "fail", "first", "found", "goto")

    def __init__(self, stops: Sequence[str]):
        self.goto: list[dict[str, int]] = [{}]
        self.depth = [0]
        self.found: list[str | None] = [None]
        for stop in stops:
            self._add(stop)
        self.fail = [0] * len(self.goto)
        self._link()
        self.first = re.compile("[" + "".join(sorted({re.escape(stop[0]) for stop in stops})) + "]")

    def _add(self, stop: str) -> None:
        state = 0
        for char in stop:
            if char not in self.goto[state]:
                self.goto[state][char] = len(self.goto)
                self.goto.append({})
                self.depth.append(self.depth[state] + 1)
                self.found.append(None)
            state = self.goto[state][char]
        self.found[state] = stop

    def _link(self) -> None:
        """Set, breadth first, each state's longest proper suffix that is a state too, and what ends there."""
        queue = deque(self.goto[0].values())
        while queue:
            state = queue.popleft()
            for char, after in self.goto[state].items():
                self.fail[after] = self.step(self.fail[state], char)
                queue.append(after)
            if self.found[state] is None:
                self.found[state] = self.found[self.fail[state]]

    def step(self, state: int, char: str) -> int:
        """The state after one more character."""
        while state and char not in self.goto[state]:
            state = self.fail[state]
        return self.goto[state].get(char, 0)


def stop_automaton(stops: tuple[str, ...]) -> StopAutomaton:
    """The automaton of non-empty stop strings; small ones are kept for later requests."""
    return _cached(stops) if sum(map(len, stops)) <= _CACHED_CHARS else StopAutomaton(stops)


@lru_cache(maxsize=256)
def _cached(stops: tuple[str, ...]) -> StopAutomaton:
    return StopAutomaton(stops)


class StopChecker:
    """One sample's text on its way out, up to the first stop string.

    The stop string that is complete first counts; of several that end at one character, the longest. So the result
    does not depend on how the text is cut into pieces.

    Attributes:
        matched: the stop string that was found, or None.
    """

    __slots__ = ("_automaton", "_held", "_include", "_state", "matched")

    def __init__(self, automaton: StopAutomaton, include_stop_str_in_output: bool = False):
        self._automaton = automaton
        self._include = include_stop_str_in_output
        self._state = 0
        self._held = ""
        self.matched: str | None = None

    @property
    def num_held(self) -> int:
        """Characters held back: the longest suffix of the text that begins a stop string."""
        return len(self._held)

    def feed(self, text: str) -> str:
        """Take more text; return what is certain to be part of the output. "" for ever after a match."""
        if self.matched is not None:
            return ""
        automaton, state = self._automaton, self._state
        goto, found, position, length = automaton.goto, automaton.found, 0, len(text)
        while position < length:
            if state == 0:
                begin = automaton.first.search(text, position)
                if begin is None:
                    break
                position = begin.start()
            state = goto[state].get(text[position]) or automaton.step(state, text[position])
            position += 1
            stop = found[state]
            if stop is not None:
                return self._match(stop, self._held + text[:position])
        self._state = state
        seen = self._held + text
        keep = len(seen) - automaton.depth[state]
        self._held = seen[keep:]
        return seen[:keep]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        rest, self._held, self._state = self._held, "", 0
        return rest

    def _match(self, stop: str, seen: str) -> str:
        self.matched = stop
        self._held = ""
        return seen if self._include else seen[: -len(stop)]
