"""What must not be in the code at all; `tests/test_structure.py` has more of the kind."""

from __future__ import annotations

import ast
import re._parser as sre
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TREES = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "octavo").rglob("*.py"))}
WILDCARDS = {"0.0.0.0", "::", "tcp://*", "*", "tcp://0.0.0.0"}  # noqa: S104
OBJECTS = {"recv_pyobj", "send_pyobj", "broadcast_object_list", "send_object", "recv_object", "from_pickle"}
LISTENERS = {"bind", "listen", "start_server", "create_server", "TCPStore", "init_process_group", "serve_forever"}
MAY_LISTEN = {"octavo/server/serve.py", "octavo/engine/channel.py"}
FRAMEWORKS = {"ray", "torch.distributed", "multiprocessing", "concurrent.futures.process", "xmlrpc", "Pyro4"}


def found(check) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)} {what}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        for what in check(path, node)
    ]


@pytest.mark.security("A6")
def test_nothing_is_checked_by_assert():
    assert found(lambda _, node: ["assert"] if isinstance(node, ast.Assert) else []) == []


@pytest.mark.security("A1", "A2")
def test_no_objects_travel():
    def check(_, node):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        return [name] if name in OBJECTS else []

    assert found(check) == []


@pytest.mark.security("A1", "A40")
def test_nothing_listens_on_all_interfaces():
    def check(_, node):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            values = [*node.args, *(keyword.value for keyword in node.keywords)]
            if called in LISTENERS or called.startswith("bind"):
                inside = [each for value in values for each in ast.walk(value)]
                return [
                    f"{called}({c.value!r})" for c in inside if isinstance(c, ast.Constant) and is_wildcard(c.value)
                ]
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value.startswith(("tcp://", "0.0.0.0"))  # noqa: S104
        ):
            return [repr(node.value)]
        return []

    assert found(check) == []


def is_wildcard(value) -> bool:
    return isinstance(value, str) and (value in WILDCARDS or value == "")


@pytest.mark.security("A1", "A40")
def test_only_the_server_and_the_engines_socket_listen():
    def check(path, node):
        if str(path.relative_to(ROOT)) in MAY_LISTEN or not isinstance(node, ast.Call):
            return []
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        return [called] if called in LISTENERS - {"serve_forever"} else []

    assert found(check) == []


@pytest.mark.security("A11", "A40", "A5")
def test_no_framework_that_listens_or_pickles_is_imported():
    def check(_, node):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            return []
        return [name for name in names if any(name == bad or name.startswith(bad + ".") for bad in FRAMEWORKS)]

    assert found(check) == []


# -- regular expressions -------------------------------------------------------------------------------------------


def patterns() -> Iterator[tuple[Path, int, str]]:
    """Every literal pattern that the package compiles or uses."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                owner, first = node.func.value, node.args[0]
                is_re = isinstance(owner, ast.Name) and owner.id == "re"
                if is_re and isinstance(first, ast.Constant) and isinstance(first.value, str | bytes):
                    value = first.value.decode("latin-1") if isinstance(first.value, bytes) else first.value
                    yield path, node.lineno, value


def repeats_within_repeats(pattern: str) -> bool:
    """Whether an unbounded repeat holds another one, of which it could take more or fewer for the same text.

    Harmless, and not counted: an inner part that begins with, or is followed by, a fixed character that what the inner
    repeat matches cannot be; for simplicity, one whose first item is a literal or which ends in one.
    """
    return any(is_nested(item, False) for item in sre.parse(pattern))


def is_nested(item, inside: bool) -> bool:
    kind, value = item
    name = str(kind)
    if name in ("MAX_REPEAT", "MIN_REPEAT"):
        _, high, body = value
        unbounded = high > 1000
        if unbounded and inside:
            return True
        loose = unbounded and not anchored(body)
        return any(is_nested(each, inside or loose) for each in body)
    if name == "BRANCH":
        return any(is_nested(each, inside) for branch in value[1] for each in branch)
    if name in ("SUBPATTERN",):
        return any(is_nested(each, inside) for each in value[-1])
    if name in ("ASSERT", "ASSERT_NOT"):
        return any(is_nested(each, inside) for each in value[1])
    return False


def anchored(body) -> bool:
    items = list(body)
    while len(items) == 1 and str(items[0][0]) == "SUBPATTERN":
        items = list(items[0][1][-1])
    return bool(items) and ("LITERAL" in (str(items[0][0]), str(items[-1][0])))


@pytest.mark.security("A20")
def test_no_pattern_can_backtrack_without_end():
    bad = [
        f"{path.relative_to(ROOT)}:{line} {text!r}" for path, line, text in patterns() if repeats_within_repeats(text)
    ]
    assert bad == []
    assert len(list(patterns())) > 10


@pytest.mark.security("A20")
@pytest.mark.parametrize(
    ("pattern", "nested"),
    [
        ("(a+)+b", True),
        ("(a*)*", True),
        ("(?:a|b+)*c", True),
        ("a+b+", False),
        ("(?:/[a-z]+)*", False),
        ("(x+x+)+y", True),
    ],
)
def test_the_check_knows_the_kind(pattern, nested):
    assert repeats_within_repeats(pattern) == nested


@pytest.mark.security("A6")
def test_validation_holds_under_optimization():
    code = (
        "from octavo.request import SamplingParams as P; from octavo.validation import validate_params as v\n"
        "from octavo.errors import InvalidRequestError\n"
        "for bad in (dict(n=10**9), dict(temperature=float('nan')), dict(stop_token_ids=(-1,)), dict(logprobs=99)):\n"
        "    try: v(P(**bad), vocab_size=10, max_model_len=10, max_logprobs=5)\n"
        "    except InvalidRequestError: continue\n"
        "    raise SystemExit('not refused')\n"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
