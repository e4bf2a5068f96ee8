"""`octavo bench serve`."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from octavo.bench.workloads import WORKLOADS, fit_vocabulary
from octavo.cli.bench_engine import report_json
from octavo.cli.bench_throughput import choose_workload
from octavo.cli.options import INTEGER
from octavo.cli.table import print_table, spread_row
from octavo.cli.terminal import ProgressLine, note
from octavo.cli.verbs import verb
from octavo.errors import ConfigError, RequestFailedError

if TYPE_CHECKING:
    from octavo.bench.metrics import RequestTimes

_DEFAULT_VOCAB_SIZE = 32_000  # no vocabulary in use is smaller by much


@verb("serve")
@click.option("--base-url", default="http://127.0.0.1:8000", show_default=True, help="The server's address.")
@click.option("--model", metavar="NAME", help="Which of its models; default: the first it lists.")
@click.option("--api-key", metavar="KEY", envvar="OPENAI_API_KEY", help="Key to send. [env: OPENAI_API_KEY]")
@click.option(
    "--backend",
    type=click.Choice(["openai", "openai-chat"]),
    default="openai",
    show_default=True,
    help="Completions with token ids, or chat completions with random words.",
)
@click.option("--workload", type=click.Choice(list(WORKLOADS)), help="A shared workload; default: random prompts.")
@click.option("--num-prompts", type=INTEGER, metavar="N", help="Use the workload's first N; random: N. [random: 16]")
@click.option("--input-len", "--random-input-len", type=INTEGER, metavar="N", help="Tokens of a random prompt. [128]")
@click.option("--output-len", "--random-output-len", type=INTEGER, metavar="N", help="Tokens to generate. [128]")
@click.option("--vocab-size", type=INTEGER, metavar="N", help="Ids are below this; default: what the server says.")
@click.option("--request-rate", type=float, default=float("inf"), show_default=True, help="Mean requests a second.")
@click.option("--burstiness", type=float, default=1.0, show_default=True, help="1: Poisson arrivals; less: burstier.")
@click.option("--max-concurrency", type=click.IntRange(1), help="Most requests open at one time.")
@click.option("--num-warmups", type=click.IntRange(0), default=1, show_default=True, help="Untimed requests before.")
@click.option("--goodput", multiple=True, metavar="METRIC:MS", help="Bound that a good request keeps, as ttft:200.")
@click.option("--timeout", type=float, default=3600.0, show_default=True, help="Seconds a request may take.")
@click.option("--extra-body", default="{}", metavar="JSON", help="Further fields of each request.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the arrivals.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the result there.")
@click.pass_context
def serve(ctx: click.Context, /, **options: Any) -> None:
    """Send requests to a running OpenAI-compatible server and report what its clients see.

    TTFT: to the first chunk. TPOT: per token after it. ITL: between chunks. E2EL: in all. As in `vllm bench serve`.
    """
    from octavo.bench.metrics import parse_goodput
    from octavo.bench.serve import Load, measure, result_of

    goodput = parse_goodput([bound for value in options["goodput"] for bound in value.split()])
    _check(options)
    name, workload = choose_workload(
        options["workload"], options["num_prompts"], options["input_len"], options["output_len"]
    )
    model, vocab_size = _server_facts(options)
    workload, modulo = fit_vocabulary(workload, vocab_size)
    load = Load(
        url=options["base_url"],
        model=model,
        chat=options["backend"] == "openai-chat",
        api_key=options["api_key"],
        request_rate=options["request_rate"],
        burstiness=options["burstiness"],
        max_concurrency=options["max_concurrency"],
        seed=options["seed"],
        timeout=options["timeout"],
        extra=_extra_body(options["extra_body"]),
    )
    for _ in range(options["num_warmups"]):
        _require_success(measure(load, workload[:1]))
    with ProgressLine() as line:
        done = 0

        def progress(_: RequestTimes) -> None:
            nonlocal done
            done += 1
            line(f"{done:,} of {len(workload):,} requests", done / len(workload))

        times = measure(load, workload, progress)
    result = result_of(load, name, times, goodput, modulo=modulo)
    _print(result, name, model)
    report_json(options["json_file"], result)
    _require_success(times)


def _check(options: dict[str, Any]) -> None:
    for name in ("request_rate", "burstiness", "timeout"):
        if not options[name] > 0:
            raise ConfigError(
                f"--{name.replace('_', '-')} cannot be {options[name]}.", fix="It must be above 0.", param=name
            )


def _server_facts(options: dict[str, Any]) -> tuple[str, int]:
    """The model's name and vocabulary, asked of the server where the command line does not say."""
    from octavo.bench.serve import models_of

    models = asyncio.run(models_of(options["base_url"], options["api_key"]))
    if not models:
        raise ConfigError(f"The server at {options['base_url']} lists no model.", fix="Name one with --model.")
    wanted = options["model"] or models[0]["id"]
    entry = next((each for each in models if each.get("id") == wanted), {})
    return wanted, options["vocab_size"] or entry.get("vocab_size") or _DEFAULT_VOCAB_SIZE


def _extra_body(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise ConfigError(
            "--extra-body is no JSON object.", fix="""Write it like '{"top_p": 0.9}'.""", param="extra_body"
        )
    return fields


def _require_success(times: list[RequestTimes]) -> None:
    """Raises RequestFailedError if any request failed, with the first one's reason."""
    failed = [request.error for request in times if request.error]
    if failed:
        raise RequestFailedError(f"{len(failed)} of {len(times)} requests failed; the first with: {failed[0]}")


def _print(result: dict[str, Any], name: str, model: str) -> None:
    rows = [
        ("requests", f"{result['completed']:,} completed, {result['failed']:,} failed"),
        ("seconds", f"{result['duration_s']:,.2f}"),
        ("requests/s", f"{result['requests_per_s']:,.2f}"),
        ("output tokens/s", f"{result['output_tokens_per_s']:,.1f}"),
        ("all tokens/s", f"{result['total_tokens_per_s']:,.1f}"),
        ("peak concurrency", f"{result['peak_concurrency']:,}"),
    ]
    rows += [(f"{key.upper()}, ms", spread_row(result[f"{key}_ms"])) for key in ("ttft", "tpot", "itl", "e2el")]
    if "goodput" in result:
        rows.append(("good requests/s", f"{result['good_requests_per_s']:,.2f}"))
    print_table(f"{name} · {model}", rows)
    if result["ids_taken_modulo_vocabulary"]:
        note("Token ids were taken modulo the server's vocabulary.")
    sys.stdout.flush()
