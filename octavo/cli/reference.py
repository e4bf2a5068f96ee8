"""`python -m octavo.cli.reference` writes the pages of docs/ that are made from the code: flags and errors.

With `--check` it writes nothing and ends with status 1 if a page is not what it would write.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from octavo import errors
from octavo.cli.flags import Flag, flags_of, group_title
from octavo.cli.sampling import SamplingOptions
from octavo.config import EngineConfig, ServerOptions, groups
from octavo.errors import OctavoError

_MADE_BY = "<!-- Made by `python -m octavo.cli.reference`; change the code, not this page. -->"


_FLAGS_INTRODUCTION = """\
Each group says which verbs take it; `bench` means `bench throughput` and `bench latency`. The same names are keys of a
`--config FILE.yaml`, with dashes or underscores, and the engine's are keyword arguments of `octavo.LLM` and
`octavo.AsyncLLM`, with underscores. A flag goes before the file, the file before the default. Whole numbers take
suffixes: `25.6k` is 25,600, `32K` is 32,768, `4GiB` is 4 × 2³⁰.
"""

_ERRORS_INTRODUCTION = """\
Each error says what is wrong and what to do. On the command line it is one box (with a traceback under `-v`) and an
exit status; over HTTP it is the `error` object of OpenAI's API (`message`, `type`, `param`, `code`); in Python it is an
exception of `octavo.errors`. Beside these, the command line ends with 2 for flags it does not know, 1 for a fault of
Octavo's own, 6 where `octavo chat` finds no server, and 130 after Ctrl-C.
"""

_METRICS_INTRODUCTION = """\
`GET /metrics` has these in Prometheus' text format. Figures that mean the same in vLLM are there under its names too,
so that dashboards and autoscalers made for it work. Labels are the model's name, reasons, routes and statuses: no
client chooses one. `process_` figures are of the server's own process.
"""


def flags_page() -> str:
    """docs/flags.md: every option, from the config dataclasses."""
    lines = ["# Flags", "", _MADE_BY, "", _FLAGS_INTRODUCTION.rstrip()]
    takers = {
        **dict.fromkeys(groups(EngineConfig).values(), "serve, run, batch, bench"),
        ServerOptions: "serve; some of them also batch",
    }
    takers[SamplingOptions] = "run, chat"
    for group, verbs in takers.items():
        summary = (inspect.getdoc(group) or "").splitlines()[0]
        lines += ["", f"## {group_title(group)}", "", f"{summary} (`{verbs}`)", "", "| flag | value | default | |"]
        lines += ["|---|---|---|---|", *(_flag_row(flag) for flag in flags_of(group))]
    lines += ["", "`run` takes `--seed` as the sampling group has it."]
    return "\n".join(lines) + "\n"


def _flag_row(flag: Flag) -> str:
    name = f"`{flag.option}`" if flag.kind != "bool" else f"`{flag.option}`, `--no-{flag.option[2:]}`"
    if flag.default is None or flag.default == ():
        default = ""
    elif flag.kind == "bool":
        default = "on" if flag.default else "off"
    else:
        default = f"`{flag.default}`"
    return f"| {name} | {_value(flag)} | {default} | {_cell(flag.help)} |"


def _value(flag: Flag) -> str:
    words = {"int": "whole number", "float": "number", "str": "text", "bool": "", "choice": ""}[flag.kind]
    if flag.choices:
        words = ", ".join(f"`{choice}`" for choice in flag.choices)
    elif flag.min is not None and flag.max is not None:
        words += f" from {flag.min:,} to {flag.max:,}"
    elif flag.min is not None:
        words += f", at least {flag.min:,}"
    return words + (", may be repeated" if flag.repeat else "")


def errors_page() -> str:
    """docs/errors.md: every error a user can meet, with code and statuses."""
    lines = ["# Errors", "", _MADE_BY, "", _ERRORS_INTRODUCTION]
    lines += ["| code | exception | HTTP | exit | what it means |", "|---|---|---|---|---|"]
    for kind in _error_classes():
        meaning = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
        lines.append(f"| `{kind.code}` | `{kind.__name__}` | {kind.status} | {kind.exit_code} | {_cell(meaning)} |")
    return "\n".join(lines) + "\n"


def metrics_page() -> str:
    """docs/metrics.md: every metric, from what /metrics shows of a server that has served nothing."""
    from octavo.request import EngineStats
    from octavo.server.metrics import Metrics

    kinds: dict[str, str] = {}
    texts: dict[str, str] = {}
    for line in Metrics().text("MODEL", EngineStats()).splitlines():
        _, keyword, name, text = [*line.split(" ", 3), "", "", ""][:4]
        if keyword == "TYPE":
            kinds[name] = text
        elif keyword == "HELP":
            texts[name] = text
    lines = ["# Metrics", "", _MADE_BY, "", _METRICS_INTRODUCTION]
    lines += ["| name | kind | also as `vllm:` | |", "|---|---|---|---|"]
    for name, text in texts.items():
        if not name.startswith("vllm:"):
            alias = "yes" if name.replace("octavo:", "vllm:") in texts else ""
            lines.append(f"| `{name}` | {kinds[name]} | {alias} | {_cell(text)} |")
    return "\n".join(lines) + "\n"


def _error_classes() -> Iterator[type[OctavoError]]:
    """In the order of the file."""
    for value in vars(errors).values():
        if inspect.isclass(value) and issubclass(value, OctavoError):
            yield value


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


PAGES: dict[str, Callable[[], str]] = {"flags.md": flags_page, "errors.md": errors_page, "metrics.md": metrics_page}


def main(arguments: list[str]) -> int:
    """Write the pages, or check them; returns the exit status."""
    folder = Path(__file__).resolve().parents[2] / "docs"
    stale = 0
    for name, make in PAGES.items():
        path = folder / name
        text = make()
        if path.exists() and path.read_text() == text:
            continue
        stale = 1
        if "--check" in arguments:
            print(f"{path} is out of date: run python -m octavo.cli.reference", file=sys.stderr)
        else:
            path.write_text(text)
    return stale if "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
