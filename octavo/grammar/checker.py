"""`GrammarChecker`: whether a grammar can be kept, found out in child processes that are killed when it takes too long.

Threads would not do: a compilation in native code cannot be stopped, and it would hold a core for as long as it likes.
"""

from __future__ import annotations

import os
import queue
import select
import struct
import subprocess
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from octavo.child_python import isolated_python
from octavo.errors import InvalidRequestError, OverloadedError
from octavo.grammar.bounds import check_structured_outputs
from octavo.grammar.compiler_process import Start, Verdict, frame
from octavo.grammar.vocabulary import Vocabulary, check_installed
from octavo.request import StructuredOutputs

_START_SECONDS = 60.0
_MAX_ANSWER_BYTES = 8 << 20


class _Late(Exception):
    """The child did not answer in time, or died."""


class GrammarChecker:
    """Checks and translates. Thread-safe; `check` blocks, so it is called off the event loop.

    Args:
        vocabulary: of the model's tokenizer; asked for once, when the first grammar comes.
        timeout: seconds that one grammar may take.
        workers: children at most; more grammars than that wait.
        cache_size: verdicts that are kept.
    """

    def __init__(
        self, vocabulary: Callable[[], Vocabulary], *, timeout: float = 5.0, workers: int = 2, cache_size: int = 512
    ):
        self._vocabulary = vocabulary
        self._timeout = timeout
        self._cache: OrderedDict[bytes, Verdict] = OrderedDict()
        self._cache_size = cache_size
        self._lock = threading.Lock()
        self._start: bytes = b""
        self._slots: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        for _ in range(workers):
            self._slots.put(None)
        self.num_hits = self.num_compiled = 0

    def knows(self, spec: StructuredOutputs) -> bool:
        """Whether `check` would answer at once."""
        try:
            return _key(spec) in self._cache
        except (TypeError, ValueError, OverflowError, RecursionError):  # nothing of it was checked yet
            return False

    def check(self, spec: StructuredOutputs) -> str:
        """The grammar as the engine takes it.

        Raises:
            InvalidRequestError: out of bounds, not to be compiled, or not in time.
            OverloadedError: too many others are being tried.
        """
        kind = check_structured_outputs(spec)
        check_installed()
        key = _key(spec)
        with self._lock:
            verdict = self._cache.get(key)
            if verdict is not None:
                self._cache.move_to_end(key)
                self.num_hits += 1
        if verdict is None:
            verdict = self._compile(spec)
            with self._lock:
                self._cache[key] = verdict
                self.num_compiled += 1
                while len(self._cache) > self._cache_size:
                    self._cache.popitem(last=False)
        if verdict.error:
            raise InvalidRequestError(
                f"structured_outputs: this {kind} cannot be kept: {_brief(verdict.error)}.",
                fix="Correct it, or make it simpler.",
                param="structured_outputs",
            )
        return verdict.grammar

    def _compile(self, spec: StructuredOutputs) -> Verdict:
        try:
            child = self._slots.get(timeout=2 * self._timeout)
        except queue.Empty:
            raise OverloadedError("Too many grammars are being compiled.", fix="Try again later.") from None
        try:
            if child is None or not child.alive:
                child = None
                child = _Child(self._start_frame(), _START_SECONDS)
            return child.ask(frame(spec), self._timeout)
        except _Late as error:
            if child is not None:
                child.kill()
            child = None
            return Verdict(error=str(error))
        finally:
            self._slots.put(child)

    def _start_frame(self) -> bytes:
        with self._lock:
            if not self._start:
                self._start = frame(Start(self._vocabulary(), self._timeout))
            return self._start

    def close(self) -> None:
        """End the children."""
        children = []
        while not self._slots.empty():
            children.append(self._slots.get())
        for child in children:
            if child is not None:
                child.kill()
            self._slots.put(None)


class _Child:
    """One `octavo.grammar.compiler_process`."""

    def __init__(self, start: bytes, seconds: float):
        self._process = subprocess.Popen(  # noqa: S603 - this Python, a module of ours
            [*isolated_python(), "-m", "octavo.grammar.compiler_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.kill = weakref.finalize(self, _end, self._process)
        try:
            self.ask(start, seconds)
        except _Late:
            self.kill()
            raise _Late("the compiler could not be started") from None

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, question: bytes, seconds: float) -> Verdict:
        """Raises _Late: there was no answer within that time."""
        deadline = time.monotonic() + seconds
        try:
            self._write(question, deadline)
            (size,) = struct.unpack("<I", self._read(4, deadline))
            if size > _MAX_ANSWER_BYTES:
                raise _Late("it is too large when compiled")
            return msgspec.msgpack.decode(self._read(size, deadline), type=Verdict)
        except TimeoutError:
            raise _Late(f"it takes more than {seconds:g} seconds to compile") from None
        except (OSError, EOFError):
            raise _Late("compiling it takes more memory than it may") from None

    def _write(self, data: bytes, deadline: float) -> None:
        descriptor = self._process.stdin.fileno() if self._process.stdin else -1
        os.set_blocking(descriptor, False)
        view = memoryview(data)
        while view:
            _wait(descriptor, select.POLLOUT, deadline)
            view = view[os.write(descriptor, view) :]

    def _read(self, size: int, deadline: float) -> bytes:
        descriptor = self._process.stdout.fileno() if self._process.stdout else -1
        parts = bytearray()
        while len(parts) < size:
            _wait(descriptor, select.POLLIN, deadline)
            part = os.read(descriptor, size - len(parts))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)


def _wait(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()  # select.select takes no descriptor above 1023
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _key(spec: StructuredOutputs) -> bytes:
    return msgspec.msgpack.encode(spec)


def _brief(text: str) -> str:
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= 300 else line[:300] + "…"
