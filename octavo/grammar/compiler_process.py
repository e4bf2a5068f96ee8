"""`python -m octavo.grammar.compiler_process`: tries grammars, one after the other, where they can be killed.

Frames on stdin and stdout are a length (4 bytes, little-endian) and msgpack. First comes a `Vocabulary` and a limit in
seconds; each further frame is a `StructuredOutputs`, answered by a `Verdict`. The process ends with its stdin, and by
itself when a grammar takes longer than the limit, so that it never outlives a parent that was killed.
"""

from __future__ import annotations

import resource
import signal
import struct
import sys
from typing import Any, BinaryIO

import msgspec

from octavo.grammar.translate import translate
from octavo.grammar.vocabulary import Vocabulary, ll_tokenizer, parser_limits
from octavo.request import StructuredOutputs

MAX_FRAME = 256 << 20
_MEMORY_BYTES = 4 << 30
_GRACE_SECONDS = 1.0


class Start(msgspec.Struct, frozen=True, array_like=True):
    """What grammars are tried with."""

    vocabulary: Vocabulary
    timeout: float


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """The grammar as llguidance reads it, or why there is none."""

    grammar: str = ""
    error: str = ""


def main() -> int:
    """Serve the parent until its pipe ends; returns the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to act on
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    first = read_frame(source)
    if first is None:
        return 0
    start = msgspec.msgpack.decode(first, type=Start)
    tokenizer = ll_tokenizer(start.vocabulary)
    special = [start.vocabulary.tokens[i].decode(errors="replace") for i in start.vocabulary.special_ids]
    sink.write(frame(Verdict()))
    sink.flush()
    while (data := read_frame(source)) is not None:
        signal.setitimer(signal.ITIMER_REAL, start.timeout + _GRACE_SECONDS)
        verdict = _try(
            msgspec.msgpack.decode(data, type=StructuredOutputs), tokenizer, special, start.vocabulary.eos_ids
        )
        signal.setitimer(signal.ITIMER_REAL, 0)
        sink.write(frame(verdict))
        sink.flush()
    return 0


def _try(spec: StructuredOutputs, tokenizer: Any, special: list[str], eos_ids: list[int]) -> Verdict:
    from llguidance import LLMatcher

    try:
        grammar = translate(spec, special)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return Verdict(error=str(error) or type(error).__name__)
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=parser_limits())
    allowed = int.from_bytes(matcher.compute_bitmask(), "little") if not matcher.is_error() else 0
    if matcher.is_error():
        return Verdict(error=matcher.get_error())
    for token_id in eos_ids:
        allowed &= ~(1 << token_id)
    return Verdict(grammar) if allowed else Verdict(error="nothing but the empty answer, or none at all, would do")


def frame(message: Any) -> bytes:
    """A message with its length before it."""
    data = msgspec.msgpack.encode(message)
    return struct.pack("<I", len(data)) + data


def read_frame(source: BinaryIO) -> bytes | None:
    """The next message; None at the end."""
    head = source.read(4)
    if len(head) < 4:
        return None
    (size,) = struct.unpack("<I", head)
    data = source.read(size) if size <= MAX_FRAME else b""
    return data if len(data) == size else None


if __name__ == "__main__":
    sys.exit(main())
