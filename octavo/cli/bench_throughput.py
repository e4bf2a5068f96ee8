"""`octavo bench throughput`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from octavo.bench.workloads import WORKLOADS, Workload, fit_vocabulary, fixed, take
from octavo.cli.bench_engine import open_llm, report_json
from octavo.cli.options import INTEGER, engine_options, engine_settings
from octavo.cli.table import print_table, spread_row
from octavo.cli.terminal import note
from octavo.cli.verbs import verb
from octavo.errors import ConfigError


@verb("throughput")
@click.argument("model_name", required=False, metavar="[MODEL]")
@click.option("--workload", type=click.Choice(list(WORKLOADS)), help="A shared workload; default: random prompts.")
@click.option("--num-prompts", type=INTEGER, metavar="N", help="Use the workload's first N; random: N. [random: 16]")
@click.option("--input-len", type=INTEGER, metavar="N", help="Tokens of a random prompt. [128]")
@click.option("--output-len", type=INTEGER, metavar="N", help="Tokens to generate for a random prompt. [128]")
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True, help="Runs; the fastest is reported.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the result there.")
@click.option(
    "--profile",
    "trace_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Run once more under a profiler: tells what the GPU's time went to and writes a trace (FILE.json.gz).",
)
@engine_options()
@click.pass_context
def throughput(
    ctx: click.Context,
    /,
    model_name: str | None,
    workload: str | None,
    num_prompts: int | None,
    input_len: int | None,
    output_len: int | None,
    repeat: int,
    json_file: Path | None,
    trace_file: Path | None,
    **_: Any,
) -> None:
    """Measure tokens a second of MODEL in this process, greedy, each output of fixed length.

    Token ids beyond a small vocabulary are taken modulo its size; the result says so.
    """
    name, requests = choose_workload(workload, num_prompts, input_len, output_len)
    from octavo.bench.offline import run_workload
    from octavo.bench.offline import throughput as measure
    from octavo.bench.profile import check_possible, profile

    if trace_file is not None:
        check_possible()
    with open_llm(engine_settings(ctx, model_name)) as llm:
        result = measure(
            llm,
            name,
            requests,
            repeat=repeat,
            on_repeat=lambda index, seconds: note(f"run {index + 1} of {repeat}: {seconds:.2f} s"),
        )
        if trace_file is not None:
            prompts = fit_vocabulary(requests, llm.info.vocab_size)[0]
            result["profile"] = profile(lambda: run_workload(llm, prompts, salt="profile"), trace_file)
    print_table(
        f"{name} · {result['engine']['model']} · {result['engine']['device']}",
        [
            ("requests", f"{result['num_requests']:,}"),
            ("seconds", f"{result['seconds']:,.2f}"),
            ("requests/s", f"{result['requests_per_s']:,.2f}"),
            ("output tokens/s", f"{result['output_tokens_per_s']:,.1f}"),
            ("all tokens/s", f"{result['total_tokens_per_s']:,.1f}"),
            ("prompt tokens", f"{result['input_tokens']:,} ({result['cached_tokens']:,} cached)"),
            ("time to first token, ms", spread_row(result["ttft_ms"])),
        ],
    )
    if result["ids_taken_modulo_vocabulary"]:
        note(f"Token ids were taken modulo the vocabulary of {result['engine']['vocab_size']:,}.")
    if trace_file is not None:
        _print_profile(result["profile"], trace_file)
    report_json(json_file, result)


def _print_profile(split: dict[str, Any], trace_file: Path) -> None:
    span = split["span_ms"]
    rows = [(kind, f"{ms:,.0f} ms, {100 * ms / span:.1f} %") for kind, ms in split["ms"].items()]
    print_table(f"the GPU's {span / 1e3:,.2f} s", rows)
    note(f"The trace is in {trace_file}; ui.perfetto.dev shows it.")


def choose_workload(
    workload: str | None, num_prompts: int | None, input_len: int | None, output_len: int | None
) -> tuple[str, Workload]:
    """A name for the result, and the requests.

    Raises:
        ConfigError: lengths are given for a shared workload, or a number is not positive.
    """
    for flag_name, value in (("num-prompts", num_prompts), ("input-len", input_len), ("output-len", output_len)):
        if value is not None and value < 1:
            raise ConfigError(f"--{flag_name} cannot be {value}.", fix="It must be at least 1.", param=flag_name)
    if workload is not None:
        if input_len is not None or output_len is not None:
            raise ConfigError(
                f"The workload {workload} has its own lengths.",
                fix="Leave --input-len and --output-len out, or --workload.",
                param="workload",
            )
        return workload if num_prompts is None else f"{workload}[:{num_prompts}]", take(
            WORKLOADS[workload](), num_prompts
        )
    shape = (num_prompts or 16, input_len or 128, output_len or 128)
    return "random_{1}_{2}_x{0}".format(*shape), fixed(*shape)
