"""Warns of tables whose old shard the log does not tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity
from tidegate.engines.postgres.quoting import quoted_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(request: Asked, facts: Sides) -> Iterator[Problem]:
    """Sharded tables whose old rows arrive in the log without their sharding columns."""
    for database, table, spec in facts.sharded(request):
        if table.replica_identity == "full" or spec.primary_vindex is None:
            continue
        identity = set(table.replica_identity_columns or table.primary_key)
        missing = [name for name in spec.primary_vindex.columns if name not in identity]
        if identity and missing:
            yield Problem(
                f"{database.label} {table.name}",
                f"the replica identity of {table.name} lacks {', '.join(missing)}",
                f"ALTER TABLE {quoted_table(table.name)} REPLICA IDENTITY FULL, if"
                " many rows are updated",
                details={"columns": missing},
            )


CHECK = Check(
    id="TG-PF-204",
    title="Sharding columns are not in the replica identity",
    severity=Severity.WARNING,
    cause=(
        "The log does not say which shard a changed row was on before: each of its updates "
        "and deletes goes to all target shards, and rows that change shard with large "
        "unchanged values are read again from the source."
    ),
    remedy=(
        "for tables with many updates: ALTER TABLE … REPLICA IDENTITY FULL (more log), or "
        "make the sharding column part of the primary key"
    ),
    find=find,
)
