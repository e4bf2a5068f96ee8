"""`octavo batch`: a file of requests, answered without a server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from octavo.cli.models import ensure_here
from octavo.cli.options import INTEGER, config_options, engine_config, engine_options, given
from octavo.cli.table import print_table
from octavo.cli.terminal import ProgressLine, note
from octavo.cli.verbs import verb
from octavo.config import EngineConfig, ServerOptions, build
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from octavo.server.batch import BatchSummary

_TAKEN = (
    "served_model_name", "enable_auto_tool_choice", "tool_call_parser", "reasoning_parser", "max_logprobs",
    "generation_config", "default_max_tokens", "max_body_bytes", "max_choices", "step_timeout", "max_engine_restarts",
)  # fmt: skip
_LEFT = tuple(each.name for each in fields(ServerOptions) if each.name not in _TAKEN)
_MAX_IN_FLIGHT = 4096


@dataclass(frozen=True)
class _Server:
    options: ServerOptions


@verb("batch")
@click.argument("source", metavar="IN.jsonl", type=click.Path(path_type=Path))
@click.argument("destination", metavar="OUT.jsonl", type=click.Path(path_type=Path))
@click.argument("model_name", required=False, metavar="[MODEL]")
@click.option(
    "--max-in-flight",
    type=INTEGER,
    default=256,
    show_default=True,
    metavar="N",
    help="Requests that are open at a time; the engine batches as many as it can.",
)
@config_options(ServerOptions, skip=_LEFT)
@engine_options(config_file=False)
@click.pass_context
def batch(
    ctx: click.Context, /, source: Path, destination: Path, model_name: str | None, max_in_flight: int, **_: Any
) -> None:
    """Answer the requests of IN.jsonl, one a line in the form of OpenAI's batch files, into OUT.jsonl.

    A line that cannot be answered gets an error of its own. Lines that OUT.jsonl has an answer to already are
    skipped, so the same command goes on where an earlier one was ended.
    """
    if not 1 <= max_in_flight <= _MAX_IN_FLIGHT:
        raise ConfigError(
            f"--max-in-flight cannot be {max_in_flight}.",
            fix=f"It must be between 1 and {_MAX_IN_FLIGHT}.",
            param="max_in_flight",
        )
    config = engine_config(ctx, model_name)
    options = build(_Server, {**given(ctx, ServerOptions), "request_timeout": 0.0}).options
    from octavo.server.batch_files import OutputFile, count_lines

    num_lines = count_lines(source)
    OutputFile(destination).close()  # what is wrong with it is told before a model is loaded
    ensure_here({"model": config.model.model, "revision": config.model.revision})
    try:
        summary = asyncio.run(_run(config, options, (source, destination), num_lines, max_in_flight))
    except KeyboardInterrupt:
        note(f"What was answered is in {destination}; the same command goes on from there.")
        raise
    _report(summary, destination)


async def _run(
    config: EngineConfig, options: ServerOptions, files: tuple[Path, Path], num_lines: int, max_in_flight: int
) -> BatchSummary:
    from octavo.progress import BatchProgress
    from octavo.server.app import build_app
    from octavo.server.auth import KeyRing
    from octavo.server.batch import run_batch
    from octavo.server.serve import make_llm

    with ProgressLine() as progress:
        progress("start", 0.0)
        llm = make_llm(config, options, progress)
        try:
            info = await llm.load()
            progress.clear()
            note(f"{info.model} · {info.device} · {info.dtype} · {num_lines:,} lines")
            app = build_app(llm, options, KeyRing())
            app.prepare()
            with BatchProgress(num_lines, True) as bar:
                return await run_batch(
                    app, *files, max_in_flight=max_in_flight, on_line=lambda num_tokens: bar.advance(num_tokens, 1)
                )
        finally:
            await llm.close()


def _report(summary: BatchSummary, destination: Path) -> None:
    rate = summary.completion_tokens / max(1e-9, summary.seconds)
    rows = [("answered", f"{summary.succeeded:,}")]
    counts = {
        "refused (4xx)": summary.refused,
        "failed (5xx)": summary.failed,
        "lines that are no requests": summary.bad_lines,
        "answered before": summary.skipped,
    }
    rows += [(name, f"{count:,}") for name, count in counts.items() if count]
    rows += [
        ("prompt tokens", f"{summary.prompt_tokens:,} ({summary.cached_tokens:,} cached)"),
        ("generated tokens", f"{summary.completion_tokens:,}"),
        ("seconds", f"{summary.seconds:,.1f}"),
        ("generated tokens/s", f"{rate:,.1f}"),
    ]
    print_table(str(destination), rows)
    for code, count in sorted(summary.codes.items()):
        note(f"{count:,} × {code}")
    if summary.failed:
        note("The same command asks those that failed once more.")
