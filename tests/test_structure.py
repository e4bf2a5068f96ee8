"""What the code promises of itself: nothing dangerous, small files, documented, every flag used, docs up to date."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo import errors
from octavo.cli.reference import PAGES
from octavo.config import EngineConfig, ServerOptions, groups

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "octavo"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(), filename=str(path)) for path in SOURCES}
CORE = ("engine", "scheduler", "kv", "runner", "models", "layers")
MAX_CORE_LINES = 500
MAX_LINES = 600
MAX_FUNCTION_LINES = 80
MAX_KERNEL_LINES = 130  # a fused GPU kernel cannot call its way out of length

FORBIDDEN_CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "compile": "makes code of text",
    "torch.load": "unpickles",
    "torch.compile": "compiles after ready",
    "yaml.load": "constructs any object; safe_load does not",
    "jinja2.Environment": "a template could reach Python; use the sandbox",
    "os.system": "runs a shell",
    "os.popen": "runs a shell",
}
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}


def none_of(found: list[str]) -> None:
    """Fail with all of the list, one a line."""
    assert not found, "\n" + "\n".join(found)


def name_of(node: ast.expr) -> str:
    """`a.b.c` of a name or attribute; empty for all else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = name_of(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def dangers(path: Path, tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            names = {alias.name.split(".")[0] for alias in node.names} if isinstance(node, ast.Import) else {module}
            imported = {f"{module}.{alias.name}" for alias in node.names} if module else set()
            for bad in (names & FORBIDDEN_IMPORTS) | (imported & set(FORBIDDEN_CALLS)):
                yield f"{where(path, node)} imports {bad}"
        elif isinstance(node, ast.Call):
            called = name_of(node.func)
            if called in FORBIDDEN_CALLS:
                yield f"{where(path, node)} calls {called}, which {FORBIDDEN_CALLS[called]}"
            for keyword in node.keywords:
                if keyword.arg == "shell" and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                ):
                    yield f"{where(path, node)} may run a shell"
                if keyword.arg in ("trust_remote_code", "allow_pickle") and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                ):
                    yield f"{where(path, node)} sets {keyword.arg}"


@pytest.mark.security("A1", "A3", "A4", "A5", "A7")
def test_nothing_dangerous_is_called():
    none_of([found for path, tree in TREES.items() for found in dangers(path, tree)])


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "eval('1')",
        "import yaml\nyaml.load('x')",
        "import jinja2\njinja2.Environment()",
        "from jinja2 import Environment",
        "import subprocess\nsubprocess.run('x', shell=True)",
        "import numpy\nnumpy.load('x', allow_pickle=True)",
    ],
)
def test_the_danger_check_finds_what_it_looks_for(code):
    assert len(list(dangers(ROOT / "x.py", ast.parse(code)))) == 1


def test_files_stay_small():
    lengths = {path: len(path.read_text().splitlines()) for path in SOURCES}
    limit = {path: MAX_CORE_LINES if path.relative_to(PACKAGE).parts[0] in CORE else MAX_LINES for path in SOURCES}
    none_of([f"{path.relative_to(ROOT)}: {lengths[path]}" for path in SOURCES if lengths[path] > limit[path]])


def test_functions_fit_a_screen():
    long = [
        f"{where(path, node)} {node.name}: {(node.end_lineno or 0) - node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno > (MAX_KERNEL_LINES if "triton" in path.parts else MAX_FUNCTION_LINES)
    ]
    none_of(long)


def public_definitions(path: Path, tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """The module, its public classes and functions, and public methods of public classes that nothing overrides."""
    yield "module", tree
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node


def test_everything_public_has_a_docstring():
    missing = [
        f"{where(path, node)} {name}"
        for path, tree in TREES.items()
        for name, node in public_definitions(path, tree)
        if ast.get_docstring(node) is None and (tree.body or path.name != "__init__.py")
    ]
    none_of(missing)


def attributes_read(skip: str) -> set[str]:
    """Names after a dot, anywhere in the package but in one file."""
    return {
        node.attr
        for path, tree in TREES.items()
        if path.name != skip
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def test_every_flag_does_something():
    read = attributes_read(skip="config.py")
    flags = [f.name for group in (*groups(EngineConfig).values(), ServerOptions) for f in dataclasses.fields(group)]
    none_of([name for name in flags if name not in read])


def test_every_error_is_raised():
    text = "\n".join(path.read_text() for path in SOURCES if path.name != "errors.py")
    kinds = [
        kind.__name__
        for kind in vars(errors).values()
        if inspect.isclass(kind) and issubclass(kind, errors.OctavoError) and kind is not errors.OctavoError
    ]
    none_of([name for name in kinds if not re.search(rf"\b{name}\(", text)])


@pytest.mark.parametrize("name", PAGES)
def test_generated_docs_are_up_to_date(name):
    assert (ROOT / "docs" / name).read_text() == PAGES[name](), "run: python -m octavo.cli.reference"


def pages() -> list[Path]:
    return [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")), *sorted(PACKAGE.rglob("*.md"))]


def test_links_in_the_docs_lead_somewhere():
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages()
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
        if not target.startswith(("http://", "https://")) and not (page.parent / target).exists()
    ]
    none_of(broken)


def test_flags_in_the_docs_exist():
    known = set(re.findall(r"--[a-z][a-z0-9-]+", "\n".join(help_texts())))
    known |= {"--no-deps", "--constraint"}  # pip's
    named = {
        (page.name, flag)
        for page in pages()
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page.read_text())
        if page.name not in ("flags.md", "CHANGELOG.md")
    }
    none_of([f"{page}: {flag}" for page, flag in sorted(named) if flag not in known])


def help_texts() -> Iterator[str]:
    """All flags of all verbs and of the scripts in benchmarks/."""
    from octavo.cli.app import octavo
    from octavo.cli.verbs import VerbGroup

    def of(command, context) -> Iterator[str]:
        for param in command.get_params(context):
            yield from [*param.opts, *param.secondary_opts]
        if isinstance(command, VerbGroup):
            for name in command.list_commands(context):
                yield from of(command.get_command(context, name), context)

    yield from of(octavo, octavo.make_context("octavo", ["version"]))
    for script in (ROOT / "benchmarks").glob("*.py"):
        yield script.read_text()
    yield (PACKAGE / "cli" / "reference.py").read_text()


def test_import_directions_hold():
    pytest.importorskip("importlinter", reason="needs the extra [lint]")
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
