"""One box for a failure: what happened, and what to do about it."""

from __future__ import annotations

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from octavo.errors import OctavoError


def show_error(error: Exception, *, verbose: bool, console: Console | None = None) -> None:
    """Print the box on stderr; the traceback before it only if `verbose`."""
    console = console or Console(stderr=True, highlight=False)
    if verbose:
        import traceback

        console.print(Text("".join(traceback.format_exception(error)).rstrip(), style="dim"), soft_wrap=True)
    body = Text()
    if isinstance(error, OctavoError):
        title = error.code
        body.append(error.message)
        if error.fix:
            body.append(f"\n\n{error.fix}", style="bold")
    else:
        title = "unexpected error"
        body.append(f"{type(error).__name__}: {error}")
        if not verbose:
            body.append("\n\nThis is a fault of Octavo's. Run with -v for the traceback.", style="bold")
    console.print(Panel(body, title=title, title_align="left", border_style="red", expand=False))
