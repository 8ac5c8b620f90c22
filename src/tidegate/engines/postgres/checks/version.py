"""Refuses PostgreSQL servers that are too old."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


#: The oldest major version that streams work with.
OLDEST_MAJOR = 14


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Servers older than the oldest supported version."""
    for database in facts.servers:
        if database.server.major < OLDEST_MAJOR:
            yield Problem(
                database.label,
                f"PostgreSQL {database.server.major} is older than {OLDEST_MAJOR}",
            )


CHECK = Check(
    id="TG-PF-301",
    title="The server's version is not supported",
    severity=Severity.ERROR,
    cause=(
        "Versions before 14 lack what streams rely on: binary and streamed changes in the "
        "replication protocol."
    ),
    remedy=(
        "upgrade the server to PostgreSQL 15 or newer; 14 works as a source, but nothing is tested "
        "with it"
    ),
    find=find,
    schema=True,
)
