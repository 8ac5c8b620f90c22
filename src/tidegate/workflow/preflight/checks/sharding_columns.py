"""Refuses a vschema that shards a table by columns it does not have, or only computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity
from tidegate.workflow.preflight.check import Verb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Columns that the primary vindex names and the table lacks, or that are generated."""
    for database, table, spec in facts.sharded(request):
        assert spec.primary_vindex is not None
        there = {column.name for column in table.copied_columns}
        missing = [name for name in spec.primary_vindex.columns if name not in there]
        if missing:
            yield Problem(
                f"{database.label} {table.name}",
                f"table {table.name} has no column {', '.join(missing)} that travels with its rows",
                f"its columns are {', '.join(column.name for column in table.copied_columns)}",
                details={"columns": missing},
            )


CHECK = Check(
    id="TG-PF-205",
    title="A sharding column does not exist",
    severity=Severity.ERROR,
    cause="The vindex decides the shard of a row by columns that the table does not have.",
    remedy="name existing columns in the vschema",
    find=find,
    again=frozenset({Verb.SWITCH}),
)
