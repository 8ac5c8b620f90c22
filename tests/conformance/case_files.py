"""Reading behaviour cases: files, sections, and rows whose every key must be looked at.

A row is used through :class:`Row`, which remembers what has been read. A key that no check has
read, and that is not mere commentary, is an unknown check: the case fails.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidegate.errors import (
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ShardKeyError,
    TidegateError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent / "cases"

COMMENTARY = frozenset({"test", "case", "index", "note", "derived", "error_from", "why"})
"""Keys that say where a row comes from; they check nothing."""

HEAD = frozenset({"area", "reference", "conventions", "layouts", "note", "origin", "vocabulary"})
"""Keys of a file that describe it; all others are sections of cases."""

STORY = "story"
"""The section of a case that is a story of its own, not a row of a table."""

COMPONENTS = "components"
"""The area of cases that each name their unit: those of the scheduler."""

GO_WORDS = ("invalid character ", "strconv.", "open ", "json: ")
"""Beginnings of sentences by Go's own library: the failure counts, the words are not ours."""

ERROR_CODES: dict[str, tuple[type[TidegateError], ...]] = {
    "INVALID_ARGUMENT": (InvalidArgumentError, ShardKeyError),
    "NOT_FOUND": (NotFoundError,),
    "FAILED_PRECONDITION": (FailedPreconditionError,),
    "ABORTED": (ConflictError,),
}


@dataclass
class Row:
    """One case of a section; ``file`` is the head of its file."""

    data: dict[str, Any]
    file: dict[str, Any]
    read: set[str] = field(default_factory=set)

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return self.data[key]

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return self.data.get(key, default)

    def check_all_read(self) -> None:
        unknown = set(self.data) - self.read - COMMENTARY
        assert not unknown, f"unknown checks: {sorted(unknown)}"

    def expects_error(self) -> bool:
        return bool({"error", "error_contains", "error_code"} & set(self.data))

    def outcome(self, act: Callable[[], Any]) -> Any:
        """Run a case's action; when an error is wanted, check it and return None."""
        if not self.expects_error():
            return act()
        try:
            given = act()
        except TidegateError as error:
            self._check_error(error)
            return None
        raise AssertionError(f"expected an error, got {given!r}")

    def _check_error(self, error: TidegateError) -> None:
        text, part, code = self.get("error"), self.get("error_contains"), self.get("error_code")
        if isinstance(text, str) and not text.startswith(GO_WORDS):
            assert text == error.message
        if part is not None:
            assert part in error.message
        if code is not None:
            assert code in ERROR_CODES, f"unknown error code {code}"
            assert isinstance(error, ERROR_CODES[code])
        assert error.next_step


@dataclass(frozen=True)
class Case:
    """One row of one section of one file, under its id."""

    id: str
    area: str
    section: str
    row: Any
    file: dict[str, Any]


def folder() -> Path:
    """Where the cases are: our own, unless TIDEGATE_CASES names another folder."""
    return Path(os.environ.get("TIDEGATE_CASES") or HERE)


def cases() -> Iterator[Case]:
    """Every case of every file, in the order of names; a folder without any is an error."""
    paths = sorted(folder().rglob("*.json"))
    assert paths, f"no case files in {folder()}"
    for path in paths:
        name = path.relative_to(folder()).with_suffix("").as_posix()
        try:
            file = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            yield Case(f"{name}-unreadable", "unreadable", str(error), {}, {})
            continue
        if isinstance(file, list) and file:
            yield from _stories_of(name, file)
            continue
        if isinstance(file, dict) and _has_components(file):
            for section in ("cases", "proposed_cases"):
                for row in file.get(section, []):
                    yield Case(f"{name}-{row['id']}", COMPONENTS, section, row, file)
            continue
        if not isinstance(file, dict) or "area" not in file:
            yield Case(f"{name}-without-area", "without area", "", {}, {})
            continue
        yield from _cases_of(name, file)


def _has_components(file: dict[str, Any]) -> bool:
    """Whether each case of a file names the unit that it is about."""
    rows = [*file.get("cases", []), *file.get("proposed_cases", [])]
    return bool(rows) and all({"id", "component"} <= set(row) for row in rows)


def _stories_of(stem: str, file: list[Any]) -> Iterator[Case]:
    """The cases of a file that is a list: stories (``scenarios``), each with its own system."""
    for number, case in enumerate(file):
        if not isinstance(case, dict) or not {"id", "system"} <= set(case):
            yield Case(f"{stem}-{number}-without-system", "without system", "", {}, {})
            continue
        yield Case(f"{stem}-{case['id']}", case["system"], STORY, case, {})


def _cases_of(stem: str, file: dict[str, Any]) -> Iterator[Case]:
    for section, rows in file.items():
        if section in HEAD:
            continue
        if not isinstance(rows, list):
            yield Case(f"{stem}-{section}", file["area"], section, rows, file)
            continue
        for number, row in enumerate(rows):
            yield Case(f"{stem}-{section}-{number}", file["area"], section, row, file)
