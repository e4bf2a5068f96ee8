"""`octavo serve`: the HTTP server."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from octavo.cli.models import ensure_here
from octavo.cli.options import config_options, engine_config, engine_options, given
from octavo.cli.terminal import ProgressLine, note
from octavo.cli.verbs import verb
from octavo.config import EngineConfig, ServerOptions, build
from octavo.engine.child import engine_ahead

if TYPE_CHECKING:
    from octavo.engine.info import EngineInfo


@dataclass(frozen=True)
class _Server:
    options: ServerOptions


@verb("serve")
@click.argument("model_name", required=False, metavar="[MODEL]")
@config_options(ServerOptions)
@engine_options(config_file=False)
@click.pass_context
def serve(ctx: click.Context, /, model_name: str | None, **_: Any) -> None:
    """Serve MODEL over HTTP with the OpenAI API, until SIGTERM or Ctrl-C."""
    config = engine_config(ctx, model_name)
    options = build(_Server, given(ctx, ServerOptions)).options
    if options.backend == "sim":
        _simulate(config, options)
        return
    ensure_here({"model": config.model.model, "revision": config.model.revision})
    with engine_ahead():
        _serve(config, options)


def _simulate(config: EngineConfig, options: ServerOptions) -> None:
    """Serve a simulated engine under the name "sim"."""
    from octavo.sim.engine import SimOptions
    from octavo.sim.model import write_sim_model
    from octavo.sim.serve import sim_client

    with tempfile.TemporaryDirectory(prefix="octavo-sim-") as scratch:
        folder = write_sim_model(Path(scratch) / "sim")
        model = dataclasses.replace(config.model, model="sim", tokenizer=str(folder))
        _serve(dataclasses.replace(config, model=model), options, client=sim_client(SimOptions()))


def _serve(config: EngineConfig, options: ServerOptions, **more: Any) -> None:
    started = time.perf_counter()
    name = options.served_model_name[0] if options.served_model_name else config.model.model
    with ProgressLine() as progress:
        progress("start", 0.0)

        def ready(info: EngineInfo, url: str) -> None:
            progress.clear()
            needs_key = bool(KeyRing.of(options))
            report(info, url, name, seconds=time.perf_counter() - started, needs_key=needs_key)

        from octavo.server import serve as run_server
        from octavo.server.auth import KeyRing

        run_server(config, options, ready, progress=progress, **more)


def report(info: EngineInfo, url: str, name: str, *, seconds: float, needs_key: bool) -> None:
    """Say on stderr what is served, where its memory goes, and how to ask it something.

    Args:
        url: the server's root, as http://127.0.0.1:8000.
        name: what clients call the model.
        seconds: that the start took.
    """
    note(f"{info.model} · {info.architecture} · {info.device} · {info.dtype} · quantization {info.quantization}")
    width = max((len(item) for item, _ in info.memory), default=0)
    for item, amount in info.memory:
        note(f"  {item:<{width}}  {amount}")
    note(f"  up to {info.max_model_len:,} tokens a sequence, {info.max_num_seqs} sequences a step")
    for text in info.notes:
        note(f"  {text}")
    rest = seconds - sum(taken for _, taken in info.startup)
    phases = [(phase, taken) for phase, taken in (*info.startup, ("processes and the rest", rest)) if taken >= 0.05]
    if phases:
        note("  " + " · ".join(f"{phase} {taken:.1f} s" for phase, taken in phases))
    note(f"ready after {seconds:.1f} s: {url}/v1")
    note(f"try: {example(url, name, needs_key=needs_key)}")


def example(url: str, model: str, *, needs_key: bool) -> str:
    """A curl line that asks the server one question; JSON quoting keeps it one shell word."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Why is the sky blue?"}]})
    quoted = body.replace("'", "'\\''")
    key = " -H 'Authorization: Bearer KEY'" if needs_key else ""
    return f"curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{quoted}'"
