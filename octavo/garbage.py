"""Python's cycle collector in a process that serves: out of the way of what stays, and seldom."""

from __future__ import annotations

import gc

_YOUNG = 20_000  # objects that come between two collections; Python's own 700 are one step's at a thousand streams
_OLDER = 5  # collections of the younger ones between two of these


def settle() -> None:
    """Call once everything that stays is loaded: no collection looks at it again. It takes no time.

    Objects that come and go with requests are freed by their counts (`Exchange.release` sees to it); the collector is
    only for what goes wrong, as a task and the exception that ended it.
    """
    gc.freeze()
    gc.set_threshold(_YOUNG, _OLDER, _OLDER)
    gc.enable()  # where it was off while modules were imported
