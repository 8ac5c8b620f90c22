"""Refuses servers whose log cannot be decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.workflow.preflight.check import Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(_request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Servers with another wal_level than logical."""
    for database in facts.servers:
        if database.server.wal_level != "logical":
            yield Problem(
                database.label,
                f"wal_level is {database.server.wal_level}",
            )


CHECK = Check(
    id="TG-PF-304",
    title="wal_level is not logical",
    severity=Severity.ERROR,
    cause=(
        "Streams read the log by logical decoding, from the source and, to be able to switch "
        "back, from the target."
    ),
    remedy="ALTER SYSTEM SET wal_level = logical, then restart the server",
    find=find,
)
