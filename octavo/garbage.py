"""Python's cycle collector in a process that serves: out of the way of what stays, and seldom."""

from __future__ import annotations

import gc

_YOUNG = 50_000  # objects that come between two collections; Python's own 700 are one step's at a thousand streams


def settle() -> None:
    """Call once everything that stays is loaded: no collection looks at it again.

    Objects that come and go with requests are freed by their counts; the collector is only for cycles (a task and the
    exception that ended it), of which there are a few for each request and none for each token.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 10, 10)
