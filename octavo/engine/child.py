"""An engine's process as a child; one may be started ahead, before it is known what it loads.

Importing torch is most of a small model's start. Where a command knows that it will need an engine, the child imports
while the command reads flags, opens ports and imports its own server.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from octavo.child_python import isolated_python

MODEL_ENGINE = "octavo.engine_process"


@dataclass(frozen=True, slots=True)
class Child:
    """A process that waits for its `Launch` on stdin, which stays open as long as this process lives.

    Attributes:
        alive_fd: the read end of a pipe whose other end only the child holds.
        by_main_thread: the main thread started it; with another's end the kernel may take it for an orphan.
    """

    process: subprocess.Popen[bytes]
    alive_fd: int
    by_main_thread: bool

    @classmethod
    def start(cls, module: str, arguments: Sequence[str] = ()) -> Child:
        """Run `python -m module`."""
        alive, theirs = os.pipe()
        command = [*isolated_python(), "-m", module, *arguments]
        try:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command, stdin=subprocess.PIPE, pass_fds=(theirs,), close_fds=True
            )
        except BaseException:
            os.close(alive)
            raise
        finally:
            os.close(theirs)
        return cls(process, alive, threading.current_thread() is threading.main_thread())

    def discard(self) -> None:
        """End it at once."""
        self.process.kill()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()
        os.close(self.alive_fd)


_ahead: list[Child] = []  # at most one


@contextlib.contextmanager
def engine_ahead() -> Iterator[None]:
    """Start a model's engine now, for the first that `start_engine` is asked for inside; one that nobody took ends."""
    if not _ahead:
        _ahead.append(Child.start(MODEL_ENGINE))
    try:
        yield
    finally:
        while _ahead:
            _ahead.pop().discard()


def start_engine(module: str, arguments: Sequence[str]) -> Child:
    """The child that was started ahead, if it is still there and runs this; otherwise a new one."""
    if module == MODEL_ENGINE and not arguments and _ahead:
        child = _ahead.pop()
        if child.process.poll() is None:
            return child
        child.discard()
    return Child.start(module, arguments)
