"""Progress bars on a terminal; nothing where there is none."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class BatchProgress:
    """A bar over the requests of one `LLM.generate`, with tokens a second; a context manager.

    Args:
        total: number of requests.
        enabled: False, or a stderr that is no terminal, shows nothing.
    """

    def __init__(self, total: int, enabled: bool):
        self._total = total
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._enabled = enabled and sys.stderr.isatty()
        self._tokens, self._start = 0, time.perf_counter()

    def __enter__(self) -> BatchProgress:
        if self._enabled:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[rate]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task("requests", total=self._total, rate="")
        return self

    def advance(self, num_tokens: int, num_finished: int) -> None:
        """Count tokens that came and requests that ended."""
        if self._bar is None or self._task is None:
            return
        self._tokens += num_tokens
        rate = self._tokens / max(1e-6, time.perf_counter() - self._start)
        self._bar.update(self._task, advance=num_finished, rate=f"{rate:,.0f} tok/s")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
