"""No state is spelled out in an SQL text: statements take states as parameters, from tables."""

from __future__ import annotations

import ast
import re
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src" / "tidegate"

#: Where a schema itself lists its states, and statements that still spell one. It only shrinks.
SPELLED = {
    "cluster/member_store.py",
    "engines/postgres/sidecar/schema.sql",
    "engines/postgres/sidecar/vdiff_tables.py",
}


def trees() -> dict[str, ast.Module]:
    return {
        path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in SOURCE.rglob("*.py")
    }


def states(modules: dict[str, ast.Module]) -> set[str]:
    """The values of every enumeration called …State."""
    classes = (
        node
        for tree in modules.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name.endswith("State")
    )
    return {
        line.value.value
        for each in classes
        for line in each.body
        if isinstance(line, ast.Assign)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    }


def test_no_state_word_stands_in_an_sql_text_outside_its_table() -> None:
    modules = trees()
    words = states(modules)
    assert {"Running", "Stopped", "upgrading_tenants", "completed"} <= words
    spelled = re.compile(rf"'(?:{'|'.join(map(re.escape, sorted(words)))})'")
    found = {
        name
        for name, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and spelled.search(node.value)
    }
    for path in SOURCE.rglob("*.sql"):
        if spelled.search(path.read_text(encoding="utf-8")):
            found.add(path.relative_to(SOURCE).as_posix())
    assert found == SPELLED
