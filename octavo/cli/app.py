"""Dispatch to a verb, and turn every way of failing into one clear ending."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import click

from octavo import __version__
from octavo.cli.verbs import VerbGroup
from octavo.errors import OctavoError

_VERBS = {
    "run": ("octavo.cli.run:run", "Load a model and answer a prompt, or chat, in this terminal."),
    "serve": ("octavo.cli.serve:serve", "Serve a model over HTTP with the OpenAI API."),
    "batch": ("octavo.cli.batch:batch", "Answer a file of requests, in the form of OpenAI's batch files."),
    "chat": ("octavo.cli.chat:chat", "Talk to a running server."),
    "pull": ("octavo.cli.pull:pull", "Download a model into the cache."),
    "list": ("octavo.cli.list:list_models", "Show the models that are here, and those that have a short name."),
    "rm": ("octavo.cli.rm:rm", "Remove a model from the cache."),
    "bench": ("octavo.cli.bench:bench", "Measure throughput, latency, or a server under load."),
    "version": ("octavo.cli.version:version", "Print the versions of Octavo and of what it runs on."),
}

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


@dataclass
class Session:
    """What one invocation knows before its verb starts. `verbose` is set by `-v` anywhere on the line."""

    verbose: bool = False


octavo = VerbGroup(
    "octavo",
    _VERBS,
    help="Serve large language models from paged memory.",
    context_settings={"max_content_width": 110},
    epilog='Start with:  octavo run "Why is the sky blue?"',
)
octavo.params.append(
    click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        help="Print the version and exit.",
        callback=lambda ctx, _param, value: _print_version(ctx) if value else None,
    )
)


def _print_version(ctx: click.Context) -> None:
    click.echo(f"octavo {__version__}")
    ctx.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Statuses: 0; the error's own `exit_code`; 2 for a wrong command line; 1 for a fault of Octavo's; 130 after Ctrl-C.
    """
    session = Session()
    try:
        result = octavo.main(
            list(argv) if argv is not None else None, prog_name="octavo", standalone_mode=False, obj=session
        )
        return result if isinstance(result, int) else 0
    except click.Abort:
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except OctavoError as error:
        _report(error, session.verbose)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:
        _report(error, session.verbose)
        return 1


def _report(error: Exception, verbose: bool) -> None:
    from octavo.cli.errors import show_error  # loads rich, which a run that goes well does not need

    show_error(error, verbose=verbose)
