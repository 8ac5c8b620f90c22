"""What the name of an SQL file means: which version it is, and whether it makes or undoes it.

Decides from the name alone. Names are those that people bring along: ``001_orders.sql``,
``001_orders.up.sql`` with ``001_orders.down.sql`` (golang-migrate), ``V1_2__orders.sql`` with
``U1_2__orders.sql``, and ``R__views.sql`` without a version (Flyway). The extension may be in any
case.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tidegate.bootstrap.tenants.repeatables import PREFIX

_SQL: Final = re.compile(r"\.sql", re.IGNORECASE)
_NUMBERED: Final = re.compile(
    r"(?P<number>[0-9]+)_(?P<name>.+?)(?:\.(?P<way>up|down))?\.sql", re.IGNORECASE | re.DOTALL
)
_LETTERED: Final = re.compile(
    r"(?P<letter>[VU])(?P<number>[0-9]+(?:[._][0-9]+)*)__(?P<name>.+)\.sql",
    re.IGNORECASE | re.DOTALL,
)
_REPEATABLE: Final = re.compile(r"R__(?P<name>.+)\.sql", re.IGNORECASE | re.DOTALL)
FORMS: Final = "NNN_name.sql, NNN_name.up.sql with NNN_name.down.sql, V1__name.sql, or R__name.sql"


class Way(StrEnum):
    """What a file does with its version."""

    UP = "up"
    DOWN = "down"
    REPEAT = "repeat"
    """It has none, and runs whenever its content has changed."""


@dataclass(frozen=True, slots=True)
class FileName:
    """A name that was understood."""

    version: str
    """As written; a dot stands for each underscore in the number of a ``V`` or ``U`` file.

    A repeatable file has its prefix and name instead.
    """
    name: str
    way: Way
    order: tuple[int, ...]
    """Sorts versions: by number, not by letters; empty for a repeatable file."""
    is_lettered: bool
    """Of the form ``V1__name.sql``, whose numbers may have gaps."""


def is_sql(name: str) -> bool:
    """Whether a file is one of SQL by its extension."""
    return bool(_SQL.fullmatch(name[-4:])) and len(name) > 4


def read_name(name: str) -> FileName | str:
    """What a file's name means, or why it means nothing."""
    found = _NUMBERED.fullmatch(name)
    if found is not None:
        number = found["number"]
        way = Way((found["way"] or "up").lower())
        return FileName(number, found["name"], way, _order(number), is_lettered=False)
    found = _LETTERED.fullmatch(name)
    if found is not None:
        number = found["number"].replace("_", ".")
        way = Way.UP if found["letter"] in "vV" else Way.DOWN
        return FileName(number, found["name"], way, _order(number), is_lettered=True)
    found = _REPEATABLE.fullmatch(name)
    if found is not None:
        id_ = f"{PREFIX}{found['name']}"
        return FileName(id_, found["name"], Way.REPEAT, (), is_lettered=True)
    return f"its name is not {FORMS}"


def _order(number: str) -> tuple[int, ...]:
    parts = [int(part) for part in number.split(".")]
    while len(parts) > 1 and not parts[-1]:
        parts.pop()  # 1.0 is 1
    return tuple(parts)
