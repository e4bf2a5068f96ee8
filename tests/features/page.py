"""`python -m tests.features.page` writes docs/features.md: which features work with which.

Each cell is a test of `test_pairs.py`; a test fails when the page is not what this writes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.features.features import FEATURES, verdict

PAGE = Path(__file__).resolve().parents[2] / "docs" / "features.md"

_INTRODUCTION = """\
# Features, two by two

<!-- Made by `python -m tests.features.page`; change the tests, not this page. -->

Each cell is a test (`tests/features/test_pairs.py`): a storm of requests on a small random model with both features
on, whose every answer must equal the same request alone, with neither batching nor caching; and both features must be
seen at work (prefixes found, sequences preempted, stops met, ...). The pool's invariants are checked after every step.

- **●** both on the same request (features of the engine are on for all requests)
- **◐** beside each other: a request is of one kind or the other, and both kinds run in one batch
- **✕** refused, with the error's code in the list below; requests with one and requests with the other run in one batch
"""


def page() -> str:
    """The page's text."""
    lines = [_INTRODUCTION]
    lines.append("| |" + "".join(f" {number} |" for number in range(1, len(FEATURES))))
    lines.append("|---|" + "---|" * (len(FEATURES) - 1))
    refused = []
    for row, one in enumerate(FEATURES):
        cells = []
        for other in FEATURES[:row]:
            found = verdict(other, one)
            cells.append({"together": "●", "beside": "◐"}.get(found, "✕"))
            if found not in ("together", "beside"):
                refused.append(f"- {other.name} with {one.name}: `{found}`")
        cells += [""] * (len(FEATURES) - 1 - row)
        lines.append(f"| {row + 1} {one.name} |" + "".join(f" {cell} |" for cell in cells))
    lines += ["", "Refused:", "", *refused]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Write the page, or with --check only compare; returns the exit status."""
    text = page()
    if PAGE.exists() and PAGE.read_text() == text:
        return 0
    if "--check" in arguments:
        print(f"{PAGE} is out of date: run python -m tests.features.page", file=sys.stderr)
        return 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
