"""Refuses foreign keys that a split of both tables would cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity
from tidegate.topology.vschema import TableKind
from tidegate.workflow.preflight.check import Verb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.catalog import ForeignKey
    from tidegate.topology.vschema import TableSpec
    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Foreign keys between moved tables whose rows a split would separate."""
    vschema = facts.vschema(request)
    if len(request.target_shards) < 2:
        return
    for database, table in facts.source_tables():
        for key in table.foreign_keys:
            referring = vschema.tables.get(str(key.table))
            referenced = vschema.tables.get(str(key.referenced))
            if referring and referenced and not _together(key, referring, referenced):
                yield Problem(
                    f"{database.label} {table.name}",
                    f"foreign key {key.name}: rows of {key.table} and the rows of"
                    f" {key.referenced} they reference can be on different shards",
                    details={"constraint": key.name},
                )


def _together(key: ForeignKey, referring: TableSpec, referenced: TableSpec) -> bool:
    """Whether equal foreign key values imply the same shard."""
    if referenced.kind is TableKind.REFERENCE:
        return True
    here, there = referring.primary_vindex, referenced.primary_vindex
    if here is None or there is None or here.name != there.name:
        return False
    compared = dict(zip(key.columns, key.referenced_columns, strict=True))
    return tuple(compared.get(column) for column in here.columns) == there.columns


CHECK = Check(
    id="TG-PF-211",
    title="A foreign key would cross shards",
    severity=Severity.ERROR,
    cause=(
        "A row and the row it references must be on the same shard, or the foreign key cannot"
        " be created there."
    ),
    remedy=(
        "shard both tables by columns that the foreign key compares, make the referenced "
        "table a reference table, or drop the foreign key"
    ),
    find=find,
    again=frozenset({Verb.SWITCH}),
)
