"""`python -m tests.server_security.page` writes docs/security.md from `ROWS` and the tests' `security` markers."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.server_security.rows import ROWS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "security.md"

INTRODUCTION = """\
# Security

<!-- Made by `python -m tests.server_security.page`; change tests/server_security/rows.py, not this page. -->

What the server promises, by the classes of vulnerability that were published for engines of its kind. Each row is kept
by at least one test. [server.md](server.md) says how keys and limits are set.

Not covered: traffic is not encrypted (put a proxy that speaks TLS before it); whoever may read the process's memory or
environment, or write the model's files, is trusted; the time an answer takes depends on what else is running.

| | class | rule | tests |
|---|---|---|---|
"""


def marked() -> Iterator[tuple[str, Path, str]]:
    """(row, file, test) of every test that has the marker, by itself or through its module's `pytestmark`."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text()
        if "mark.security" not in text:
            continue
        tree = ast.parse(text)
        everywhere = [row for node in tree.body if is_pytestmark(node) for row in rows_in(node)]
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                for row in [*everywhere, *(row for each in node.decorator_list for row in rows_in(each))]:
                    yield row, path, node.name


def is_pytestmark(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets)


def rows_in(node: ast.AST) -> list[str]:
    """The rows that a decorator, or an assignment, names."""
    return [
        argument.value
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "security"
        for argument in call.args
        if isinstance(argument, ast.Constant)
    ]


def page() -> str:
    """docs/security.md."""
    tests: dict[str, list[str]] = {row: [] for row in ROWS}
    for row, path, name in marked():
        tests[row].append(f"`{path.relative_to(ROOT / 'tests')}` {name.removeprefix('test_').replace('_', ' ')}")
    lines = [f"| {row} | {what} | {rule} | {'; '.join(tests[row])} |" for row, (what, rule) in ROWS.items()]
    return INTRODUCTION + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.exit(0)
