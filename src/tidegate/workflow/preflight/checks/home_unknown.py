"""Refuses tables whose rows do not tell which of several source shards they are from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity
from tidegate.topology.vschema import TableKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Tables of several source shards without a primary vindex in the source's vschema."""
    if len(request.source_shards) < 2:
        return
    vschema = facts.snapshot.vschema(request.source_keyspace)
    for table in facts.model_tables():
        spec = vschema.tables.get(str(table.name))
        if spec is not None and (spec.kind is TableKind.REFERENCE or spec.primary_vindex):
            continue
        yield Problem(
            f"{request.source_keyspace} {table.name}",
            f"{table.name} is fed by {len(request.source_shards)} source shards, and the vschema of"
            f" {request.source_keyspace} does not say which of them a row belongs to",
        )


CHECK = Check(
    id="TG-PF-230",
    title="Rows do not tell their source shard",
    severity=Severity.ERROR,
    cause=(
        "A stream must not touch rows of another source shard; the primary vindex of the source's"
        " vschema is what tells them apart."
    ),
    remedy=(
        "give the table a primary vindex in the source's vschema, or declare it a reference table"
    ),
    find=find,
)
