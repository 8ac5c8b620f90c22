"""What the project's text must hold: it speaks of itself alone, and names only what exists."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Rules of the data path that this version carries (docs/internals/datapath.md).
RULES = (*range(1, 12), *range(13, 19), 20, 22, 23)


def tracked(pattern: str) -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", pattern], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in done.stdout.split() if (ROOT / name).is_file()]


@pytest.mark.parametrize("path", tracked("*.md"), ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if "://" in target or target.startswith("mailto:"):
            continue
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


def functions_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}


def test_each_rule_of_the_data_path_names_a_test_that_exists() -> None:
    text = (ROOT / "docs/internals/datapath.md").read_text(encoding="utf-8")
    for rule in RULES:
        section = re.search(rf"^## Rule {rule}\b.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        assert section, f"rule {rule} is not described"
        tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", section[0])
        assert tests, f"rule {rule} names no test"
        for file, name in tests:
            assert (ROOT / file).is_file(), f"rule {rule} names {file}"
            assert name in functions_of(ROOT / file), f"rule {rule} names {file}::{name}"


def test_each_defect_that_was_designed_out_names_a_test_that_exists() -> None:
    text = (ROOT / "docs/internals/defects.md").read_text(encoding="utf-8")
    numbers = {f"A4.{n}" for n in range(1, 10)} | {f"D{n}" for n in range(1, 12)}
    numbers |= {f"C{n}" for n in range(1, 13)}
    lines = {
        match[1]: match[0]
        for match in re.finditer(r"^\| ([A-Z]\d[\d.]*) \|.*$", text, re.MULTILINE)
    }
    assert set(lines) == numbers
    for number, line in lines.items():
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", line)
        cases = re.findall(r"`([BC][A-Z]?\d+)`", line)
        assert named or cases or "the same test" in line, f"{number} names no test"
        for file, name in named:
            assert (ROOT / file).is_file(), f"{number} names {file}"
            assert not name or name in functions_of(ROOT / file), f"{number} names {file}::{name}"
        for case in cases:
            assert case in story_ids(), f"{number} names the case {case}"


@functools.cache
def story_ids() -> frozenset[str]:
    """The ids of all behaviour cases that are stories."""
    files = (ROOT / "tests/conformance/cases").glob("*.json")
    read = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    return frozenset(case["id"] for file in read if isinstance(file, list) for case in file)


def test_there_is_no_way_to_skip() -> None:
    pattern = re.compile(r"pytest\.(mark\.)?(skip|xfail|importorskip)|unittest\.skip")
    for path in tracked("tests/*.py"):
        if path != Path(__file__):
            assert not pattern.search(path.read_text(encoding="utf-8")), path
