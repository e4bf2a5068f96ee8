"""What the two benchmarks of an engine in this process share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.bench.record import write_json
from octavo.cli.models import ensure_here
from octavo.cli.terminal import ProgressLine, note

if TYPE_CHECKING:
    from octavo.llm import LLM


@contextmanager
def open_llm(settings: Mapping[str, Any]) -> Iterator[LLM]:
    """Load the model with a progress line. No tokenizer is needed, as prompts are token ids."""
    ensure_here(settings)
    with ProgressLine() as progress:
        progress("start", 0.0)
        from octavo.llm import LLM

        llm = LLM(progress=progress, **{"skip_tokenizer_init": True, **settings})
    with llm:
        yield llm


def report_json(path: Path | None, result: Mapping[str, Any]) -> None:
    """Write the result if a file was named, and say so."""
    if path is not None:
        write_json(path, result)
        note(f"written to {path}")
