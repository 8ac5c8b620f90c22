"""Refuses databases that do not say what their bytes mean, unless that is accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides

NO_ENCODING = "SQL_ASCII"


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Databases with the encoding SQL_ASCII."""
    for database in facts.databases:
        if database.server.encoding == NO_ENCODING:
            yield Problem(database.label, f"encoding {NO_ENCODING} at {database.label}")


CHECK = Check(
    id="TG-PF-434",
    title="A database has no encoding",
    severity=Severity.ERROR,
    waivable=True,
    cause=(
        "SQL_ASCII stores whatever bytes it is given. Text is carried as UTF8, and the copy would "
        "stop at the first value that is not valid UTF8."
    ),
    remedy=(
        "accept it where every text is ASCII or valid UTF8; otherwise move the data into a "
        "database with an encoding first"
    ),
    find=find,
)
