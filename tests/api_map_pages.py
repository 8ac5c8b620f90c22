"""The pages that map names of Go packages to ours: their rows, and what a name leads to."""

from __future__ import annotations

import dataclasses
import importlib
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

NOTHING = "—"
IN_NOTES = re.compile(r"`(tidegate\.[\w.]+)`")


def rows_of(page: Path) -> list[tuple[str, str, str]]:
    """(Go name, Python name, note) of each row."""
    found = []
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            go, python, note = (cell.strip() for cell in line.strip("|").split("|"))
            found.append((go.strip("`"), python.strip("`"), note))
    return found


def resolve(path: str) -> Any:
    """Import the longest module of a dotted path and walk down its attributes and fields."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            if dataclasses.is_dataclass(found) and name in found.__dataclass_fields__:
                found = found.__dataclass_fields__[name]
            else:
                found = getattr(found, name)
        return found
    raise AssertionError(path)
