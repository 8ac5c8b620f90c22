"""Tells which servers have a version nobody tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity
from tidegate.engines.postgres.checks.version import OLDEST_MAJOR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


#: The major versions that the tests of the data path run on.
TESTED_MAJORS = (16, 18)


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Supported versions that the tests do not run on."""
    for database in facts.servers:
        if database.server.major >= OLDEST_MAJOR and database.server.major not in TESTED_MAJORS:
            yield Problem(
                database.label,
                f"PostgreSQL {database.server.major} is not tested with this version of Tidegate",
            )


CHECK = Check(
    id="TG-PF-302",
    title="The server's version is not among the tested ones",
    severity=Severity.INFO,
    cause=(
        "Every change of Tidegate is tested with PostgreSQL 16 and 18; 14, 15, 17 and 19 have the"
        " same interfaces, newer ones are unknown."
    ),
    remedy="try the whole workflow on a copy of the database first",
    find=find,
)
