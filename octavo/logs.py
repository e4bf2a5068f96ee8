"""What the `octavo` loggers write to stderr: text, or one JSON object a line.

The server's lines are written by a thread of their own: a terminal or pipe that nobody reads must not stop the event
loop. Lines that find the queue full are dropped, and how many is told later.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import orjson

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
FORMAT_VARIABLE, LEVEL_VARIABLE = "OCTAVO_LOG_FORMAT", "OCTAVO_LOG_LEVEL"

_QUEUE_LINES = 10_000
_LAST_LINES_SECONDS = 1.0
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127)}


def _moment(record: logging.LogRecord) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.msecs):03d}Z"


class TextFormatter(logging.Formatter):
    """`2026-01-01T00:00:00.000Z INFO octavo.server: message`. Control characters of the message are shown as escapes,
    so that nothing a client sends can begin a line."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback after it."""
        line = f"{_moment(record)} {record.levelname} {record.name}: {record.getMessage().translate(_CONTROL)}"
        fields: Mapping[str, Any] = getattr(record, "fields", {})
        if fields:
            line += " " + " ".join(f"{key}={str(value).translate(_CONTROL)}" for key, value in fields.items())
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One object a line: `time`, `level`, `logger`, `message`, the record's `fields`, and `traceback` of a fault."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry: dict[str, Any] = {
            "time": _moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(entry, default=str).decode()


class ThreadHandler(logging.Handler):
    """Writes lines from a thread, which `close` gives a second for the last of them."""

    def __init__(self, stream: TextIO | None = None):
        super().__init__()
        self._stream = stream or sys.stderr
        self._lines: queue.Queue[str | None] = queue.Queue(_QUEUE_LINES)
        self._num_dropped = 0
        self._thread = threading.Thread(target=self._write, name="log-writer", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line; never waits."""
        try:
            line = self.format(record)
            if self._num_dropped and not self._lines.full():
                dropped, self._num_dropped = self._num_dropped, 0
                told = logging.LogRecord(
                    "octavo.logs", logging.WARNING, "", 0, "%d lines were dropped", (dropped,), None
                )
                line = f"{self.format(told)}\n{line}"
            self._lines.put_nowait(line)
        except queue.Full:
            self._num_dropped += 1
        except Exception:
            self.handleError(record)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError, ValueError):  # the stream has been closed
                self._stream.write(line + "\n")
                if self._lines.empty():
                    self._stream.flush()

    def close(self) -> None:
        """Write what is queued, as far as the stream takes it within a second."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
            self._thread.join(_LAST_LINES_SECONDS)
        super().close()


@contextlib.contextmanager
def logging_to_stderr(log_format: str, level: str) -> Iterator[None]:
    """The `octavo` loggers, and warnings of others, go to stderr meanwhile; so do those of engines started meanwhile.

    Args:
        log_format: one of `FORMATS`. level: one of `LEVELS`.
    """
    handler = ThreadHandler()
    ours, every = logging.getLogger("octavo"), logging.getLogger()
    level_before = ours.level
    variables = {FORMAT_VARIABLE: log_format, LEVEL_VARIABLE: level}
    kept = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    _attach(handler, log_format, level)
    try:
        yield
    finally:
        every.removeHandler(handler)
        ours.setLevel(level_before)
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        handler.close()


def log_as_the_parent() -> None:
    """In an engine's process: write as the server that started it does; without one, only warnings, as Python does."""
    log_format, level = os.environ.get(FORMAT_VARIABLE, ""), os.environ.get(LEVEL_VARIABLE, "")
    if log_format in FORMATS and level in LEVELS:
        _attach(logging.StreamHandler(), log_format, level)


def _attach(handler: logging.Handler, log_format: str, level: str) -> None:
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.getLogger().addHandler(handler)
    logging.getLogger("octavo").setLevel(level.upper())
