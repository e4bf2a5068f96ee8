"""`octavo bench latency`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from octavo.cli.bench_engine import open_llm, report_json
from octavo.cli.options import engine_options, engine_settings
from octavo.cli.table import print_table, spread_row
from octavo.cli.verbs import verb


@verb("latency")
@click.argument("model_name", required=False, metavar="[MODEL]")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Requests at a time.")
@click.option("--input-len", type=click.IntRange(1), default=32, show_default=True, help="Tokens of each prompt.")
@click.option("--output-len", type=click.IntRange(1), default=128, show_default=True, help="Tokens to generate.")
@click.option("--num-iters-warmup", type=click.IntRange(0), default=2, show_default=True, help="Untimed batches.")
@click.option("--num-iters", type=click.IntRange(1), default=10, show_default=True, help="Timed batches.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the result there.")
@engine_options()
@click.pass_context
def latency(
    ctx: click.Context,
    /,
    model_name: str | None,
    batch_size: int,
    input_len: int,
    output_len: int,
    num_iters_warmup: int,
    num_iters: int,
    json_file: Path | None,
    **_: Any,
) -> None:
    """Time one batch of equal random requests to MODEL, again and again; no batch finds cached prefixes."""
    from octavo.bench.offline import latency as measure

    with open_llm(engine_settings(ctx, model_name)) as llm:
        result = measure(
            llm,
            batch_size=batch_size,
            input_len=input_len,
            output_len=output_len,
            warm_up=num_iters_warmup,
            iterations=num_iters,
        )
    print_table(
        f"{batch_size} × ({input_len} in, {output_len} out) · {result['engine']['model']}",
        [
            ("latency, s", spread_row(result["latency_s"], digits=3)),
            ("per output token, ms", spread_row(result["per_token_ms"], digits=2)),
            ("time to first token, ms", spread_row(result["ttft_ms"])),
        ],
    )
    report_json(json_file, result)
