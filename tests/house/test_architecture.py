"""The house rules that a reader relies on: who may import whom, and how large a room may be."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "tidegate"

#: Each package and what it may import besides itself.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "backoff": set(),
    "chance": set(),
    "durations": set(),
    "steps": set(),
    "waits": set(),
    "steady_lines": set(),
    "secret": {"errors"},
    "conninfo": {"errors"},
    "cluster": {"errors", "backoff", "chance", "steps", "secret", "conninfo"},
    "operations": {"errors", "backoff", "chance", "steps", "secret", "cluster"},
    "scheduling": {"errors", "cluster"},
    "topology": {"errors", "backoff", "chance", "steps", "secret", "cluster"},
    "engines": {"errors", "backoff", "steps", "waits", "conninfo", "cluster", "topology"},
    "dataplane": {"errors", "steps", "steady_lines", "waits", "cluster", "topology", "engines"},
    "workflow": {
        "backoff",
        "durations",
        "errors",
        "steps",
        "waits",
        "cluster",
        "operations",
        "topology",
        "engines",
        "dataplane",
    },
    "bootstrap": {
        "errors",
        "backoff",
        "chance",
        "steps",
        "secret",
        "conninfo",
        "cluster",
        "topology",
        "engines",
    },
    "router": {"backoff", "chance", "errors", "topology"},
    "client": {"backoff", "errors"},
    "cli": {"errors", "durations", "client"},
    "server": {
        "backoff",
        "chance",
        "client",
        "steady_lines",
        "errors",
        "steps",
        "cluster",
        "operations",
        "topology",
        "engines",
        "dataplane",
        "workflow",
        "bootstrap",
        "router",
    },
    "demo": {"errors", "client", "engines", "router", "topology"},
    "testing": {"errors", "engines", "topology"},
}

#: Modules of topology that do no I/O: all that the router may use.
PURE_TOPOLOGY = {"topology.store", "topology.service"}

#: The command line loads these only when the verb that needs them is called.
CLI_LAZY = {
    "bootstrap",
    "cluster",
    "topology",
    "server",
    "demo",
    "steps",
    "workflow",
    "dataplane",
    "engines",
}

#: Files that may pass 500 lines. The list only shrinks.
LARGE_FILES: set[str] = set()

#: Functions that may pass 60 lines (comments and docstrings not counted). It only shrinks.
LARGE_FUNCTIONS: set[str] = set()


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def package_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[0]


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(node: ast.AST, *, top_level_only: bool) -> set[str]:
    found: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            found |= {a.name for a in child.names}
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            found |= {f"{child.module}.{a.name}" for a in child.names}
        if not (top_level_only and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)):
            found |= imports(child, top_level_only=top_level_only)
    return {name for name in found if name.startswith("tidegate.")}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    package = package_of(path)
    if package in {"__init__", "__main__"}:
        return
    assert package in MAY_IMPORT, f"{package} has no place in the house"
    lazy_allowed = CLI_LAZY if package == "cli" else set()
    top = imports(tree_of(path), top_level_only=True)
    every = imports(tree_of(path), top_level_only=False)
    for name in sorted(every):
        imported = name.split(".")[1]
        allowed = MAY_IMPORT[package] | {package, "__version__"}
        if name not in top:
            allowed |= lazy_allowed
        assert imported in allowed, f"{path.name} imports {name}"
        if package == "router":
            assert not any(name.startswith(f"tidegate.{m}") for m in PURE_TOPOLOGY), name


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_rooms_stay_small(path: Path) -> None:
    name = str(path.relative_to(SOURCE))
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 500 or name in LARGE_FILES, f"{name} has {lines} lines: make it two"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            qualified = f"{name}:{node.name}"
            assert length <= 60 or qualified in LARGE_FUNCTIONS, f"{qualified}: {length} lines"


def test_the_exceptions_are_still_needed() -> None:
    for name in LARGE_FILES:
        assert (SOURCE / name).read_text(encoding="utf-8").count("\n") > 500, name


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_every_module_says_what_it_decides(path: Path) -> None:
    assert ast.get_docstring(tree_of(path)), path


def test_pauses_grow_in_one_place() -> None:
    """A pause that doubles by itself has its own bounds, and its own mistakes."""
    doubles = re.compile(r"\* 2 ?\*\*|pause\w* \* 2\b|\b2 \* \w*pause")
    # It runs in the user's environment, where nothing of ours is installed.
    alone = SOURCE / "bootstrap" / "tenants" / "worker"
    found = [
        f"{path.relative_to(SOURCE)}: {line.strip()}"
        for path in modules()
        if path.parent != alone
        for line in path.read_text(encoding="utf-8").splitlines()
        if doubles.search(line)
    ]
    assert found == []
