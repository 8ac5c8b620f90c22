"""Refuses servers without enough walsenders left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity
from tidegate.engines.postgres.checks.slots import needed_by_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Servers with fewer free walsenders than their shards of this workflow need."""
    for database, needed in needed_by_server(facts):
        if database.server.free_wal_senders < needed:
            yield Problem(
                database.label,
                f"{database.server.free_wal_senders} of {database.server.max_wal_senders}"
                f" walsenders are free, {needed} are needed",
            )


CHECK = Check(
    id="TG-PF-306",
    title="There are too few free walsenders",
    severity=Severity.ERROR,
    cause=(
        "Each stream that reads a server occupies one of its walsenders, and so does a diff "
        "for a moment."
    ),
    remedy="end replication connections nobody uses, or raise max_wal_senders (needs a restart)",
    find=find,
)
