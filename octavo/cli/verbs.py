"""Click classes: verbs imported when needed, options grouped in `--help`, near misses suggested."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import click

GENERAL = "Options"


class VerbGroup(click.Group):
    """A group whose verbs are imported on use.

    Args:
        verbs: name to ("module:attribute", one line for `--help`), in the order in which help shows them.
    """

    def __init__(self, name: str, verbs: Mapping[str, tuple[str, str]], **settings: Any):
        super().__init__(name, **settings)
        self._verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in their own order."""
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a verb; None if there is none of that name."""
        if cmd_name not in self._verbs:
            return None
        module, _, attribute = self._verbs[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb that `args` starts with, or fail with the nearest one."""
        name = args[0]
        if name not in self._verbs and not name.startswith("-"):
            near = difflib.get_close_matches(name, self._verbs, 1, 0.5)
            hint = f" Did you mean {near[0]!r}?" if near else f" There are: {', '.join(self._verbs)}."
            raise click.UsageError(f"There is no verb {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing any."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, line) for name, (_, line) in self._verbs.items()])


class GroupedOption(click.Option):
    """An option that `--help` shows under a heading."""

    def __init__(self, *args: Any, group: str = GENERAL, **settings: Any):
        super().__init__(*args, **settings)
        self.group = group


class VerbCommand(click.Command):
    """A verb: it has `-v`, and its help shows options under their groups' headings."""

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self.params.append(
            GroupedOption(
                ["-v", "--verbose"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_set_verbose,
                help="Say more; print tracebacks.",
            )
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by group, the verb's own first."""
        sections: dict[str, list[tuple[str, str]]] = {GENERAL: []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                sections.setdefault(getattr(param, "group", GENERAL), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _set_verbose(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    session = ctx.find_root().obj
    if value and session is not None:
        session.verbose = True


def is_verbose(ctx: click.Context) -> bool:
    """Whether `-v` was given."""
    return bool(getattr(ctx.find_root().obj, "verbose", False))


def verb(name: str, **settings: Any) -> Callable[[Callable[..., Any]], VerbCommand]:
    """`click.command` for a verb of Octavo; arguments after options are kept as they are."""
    return click.command(name, cls=VerbCommand, **settings)
