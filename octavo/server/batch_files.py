"""The two files of a batch: requests in and answers out, one a line; from the latter a later run goes on."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from octavo.errors import ConfigError, InvalidRequestError

MAX_CUSTOM_ID_CHARS = 512
_LINE_OVERHEAD = 64 << 10  # of a line, beside the body
_CHUNK = 1 << 20
ID_PREFIX = "batch_req_"
_BEGINNING = b'{"id":"' + ID_PREFIX.encode()  # of every line of output


class BatchLine(msgspec.Struct, kw_only=True):
    """One request, in OpenAI's form. `body` is kept as it came."""

    custom_id: str
    url: str
    body: msgspec.Raw
    method: str = "POST"


class LineError(msgspec.Struct):
    """Why a line of the input is no request. `line` counts from 1."""

    code: str
    message: str
    line: int


class LineReply(msgspec.Struct):
    """What the handler replied."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class OutputLine(msgspec.Struct):
    """One line of output: either a response or an error."""

    id: str
    custom_id: str | None
    response: LineReply | None
    error: LineError | None


@dataclass(frozen=True, slots=True)
class InputLine:
    """A line of the input. `request` is None where `error` says why."""

    number: int
    request: BatchLine | None = None
    error: InvalidRequestError | None = None
    custom_id: str | None = None


def count_lines(path: Path) -> int:
    """Lines that are not blank.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return sum(1 for line in _lines(file, _CHUNK) if line.strip())
    except OSError as error:
        raise _unreadable(path, error) from error


def read_requests(path: Path, max_body_bytes: int) -> Iterator[InputLine]:
    """The lines of the input but blank ones. One that is no request, or whose custom_id came before, has an error.

    Args:
        max_body_bytes: longer bodies are refused.

    Raises:
        ConfigError: the file cannot be read.
    """
    seen: set[str] = set()
    longest = max_body_bytes + _LINE_OVERHEAD
    try:
        with path.open("rb") as file:
            for number, line in enumerate(_lines(file, longest), 1):
                if line.strip():
                    yield _parsed(number, line, longest, seen)
    except OSError as error:
        raise _unreadable(path, error) from error


def _lines(file: BinaryIO, longest: int) -> Iterator[bytes]:
    """Lines; of those longer than `longest` only a beginning that is longer still."""
    while line := file.readline(longest + 1):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(_CHUNK)
        yield line


def _parsed(number: int, line: bytes, longest: int, seen: set[str]) -> InputLine:
    custom_id = None
    try:
        if len(line) > longest:
            raise InvalidRequestError(f"It has more than {longest} bytes.", code="body_too_large")
        custom_id = _custom_id(line)
        try:
            request = msgspec.json.decode(line, type=BatchLine)
        except msgspec.ValidationError as error:
            raise InvalidRequestError(f"{error}.", code="invalid_type") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequestError(f"It is not valid JSON: {error}.", code="invalid_json") from None
        if not 1 <= len(request.custom_id) <= MAX_CUSTOM_ID_CHARS:
            raise InvalidRequestError(f"custom_id must have 1 to {MAX_CUSTOM_ID_CHARS} characters.")
        if request.method != "POST":
            raise InvalidRequestError(f"The method cannot be {request.method[:20]!r}.", fix="It is POST.")
        if request.custom_id in seen:
            message = "Another line before has the same custom_id."
            raise InvalidRequestError(message, fix="Give each line its own.", code="duplicate_custom_id")
    except InvalidRequestError as error:
        return InputLine(number, error=error, custom_id=custom_id)
    seen.add(request.custom_id)
    return InputLine(number, request, custom_id=request.custom_id)


class _Named(msgspec.Struct):
    custom_id: Any = None


def _custom_id(line: bytes) -> str | None:
    """What a line is called, if that can be known although something else is wrong with it."""
    try:
        found = msgspec.json.decode(line, type=_Named).custom_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found[:MAX_CUSTOM_ID_CHARS] if isinstance(found, str) else None


@dataclass(slots=True)
class Answered:
    """What an output file already has.

    Attributes:
        custom_ids: answered with anything but a failure of the server's (5xx), which is worth another try.
        lines: numbers of lines that were found to be no requests.
    """

    custom_ids: set[str] = field(default_factory=set)
    lines: set[int] = field(default_factory=set)


class OutputFile:
    """The output, held open and locked. Each line is written in one piece, at the end.

    Raises:
        ConfigError: it cannot be written, another run has it open, or what it holds is no output of a batch.
    """

    def __init__(self, path: Path):
        self._path = path
        self.answered = Answered()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._take_up()
        except OSError as error:
            os.close(self._file)
            if isinstance(error, BlockingIOError):
                raise ConfigError(
                    f"Another run writes to {path}.", fix="Wait for it, or choose another file.", param="output"
                ) from error
            raise self._unwritable(error) from error
        except BaseException:
            os.close(self._file)
            raise

    def _take_up(self) -> None:
        """Read what is there. A last line that was cut off in the middle, by a crash or a full disk, is taken away."""
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise ConfigError(f"{self._path} is no plain file.", fix="Choose another output.", param="output")
        end = 0
        with open(os.dup(self._file), "rb") as file:
            file.seek(0)
            for number, line in enumerate(file, 1):
                try:
                    written = msgspec.json.decode(line, type=OutputLine)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    if line.endswith(b"\n") or not (line.startswith(_BEGINNING) or _BEGINNING.startswith(line)):
                        raise ConfigError(
                            f"Line {number} of {self._path} is no answer of a batch.",
                            fix="Choose another file to write to; nothing of this one was changed.",
                            param="output",
                        ) from None
                    os.ftruncate(self._file, end)
                    return
                end += len(line)
                self._note(written)
                if not line.endswith(b"\n"):
                    self._append(b"\n")

    def _note(self, line: OutputLine) -> None:
        if line.error is not None:
            self.answered.lines.add(line.error.line)
        elif line.response is not None and line.custom_id is not None and line.response.status_code < 500:
            self.answered.custom_ids.add(line.custom_id)

    def write(self, line: OutputLine) -> None:
        """Append a line. Raises ConfigError: it cannot be written, as on a full disk."""
        try:
            self._append(msgspec.json.encode(line) + b"\n")
        except OSError as error:
            raise self._unwritable(error) from error

    def _append(self, data: bytes) -> None:
        """All of it or, if that fails, nothing."""
        end = os.fstat(self._file).st_size
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            if written:
                os.ftruncate(self._file, end)
            raise

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"{self._path} cannot be written: {error.strerror}.",
            fix="What it holds is kept: once that is mended, the same command goes on from there.",
            param="output",
        )

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path} cannot be read: {error.strerror}.", fix="Check the path.", param="input")
