"""Refuses servers without enough replication slots left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import DatabaseFacts, Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Servers with fewer free slots than their shards of this workflow need."""
    for database, needed in needed_by_server(facts):
        if database.server.free_slots < needed:
            yield Problem(
                database.label,
                f"{database.server.free_slots} of {database.server.max_slots} replication slots"
                f" are free, {needed} are needed",
            )


def needed_by_server(facts: Sides) -> Iterator[tuple[DatabaseFacts, int]]:
    """Each server with one slot or walsender for each shard of its, and one for a diff."""
    for server in facts.servers:
        identifier = server.server.system_identifier
        same = [d for d in facts.databases if d.server.system_identifier == identifier]
        yield server, len(same) + 1


CHECK = Check(
    id="TG-PF-305",
    title="There are too few free replication slots",
    severity=Severity.ERROR,
    cause=(
        "Each source shard needs a slot, each target shard one for the way back, and a diff "
        "one more for a moment."
    ),
    remedy="drop slots nobody uses, or raise max_replication_slots (needs a restart)",
    find=find,
)
