"""Refuses servers whose log cannot be decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Servers whose wal_level is too low for logical decoding in their version."""
    for database in facts.servers:
        if not database.server.log_decodes:
            yield Problem(
                database.label,
                f"wal_level is {database.server.wal_level}",
            )


CHECK = Check(
    id="TG-PF-304",
    title="wal_level is too low for logical decoding",
    severity=Severity.ERROR,
    cause=(
        "Streams read the log by logical decoding, from the source and, to be able to switch "
        "back, from the target. Up to PostgreSQL 18 that needs logical; from 19 on replica is "
        "enough, because the first logical slot raises what the server writes."
    ),
    remedy="ALTER SYSTEM SET wal_level = logical, then restart the server",
    find=find,
)
