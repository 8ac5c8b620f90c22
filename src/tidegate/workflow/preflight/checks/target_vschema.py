"""Refuses tables whose rows the vschema of a sharded target gives no place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity
from tidegate.topology.vschema import TableKind
from tidegate.workflow.preflight.check import Verb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Wanted tables without an entry, or whose entry gives their rows no place."""
    vschema = facts.vschema(request)
    several = len(request.target_shards) > 1
    if not vschema.sharded:
        if several:
            yield Problem(
                request.target_keyspace,
                f"keyspace {request.target_keyspace} has several target shards, but its vschema"
                " is not sharded",
                "apply a vschema with `sharded: true` and a vindex for every table",
            )
        return
    for name in facts.wanted:
        spec = vschema.tables.get(str(name))
        if spec is None:
            yield Problem(
                f"{request.target_keyspace}.{name}",
                f"the vschema of keyspace {request.target_keyspace} does not declare table {name}",
            )
        elif spec.pinned is not None or spec.kind is TableKind.SEQUENCE:
            what = "pinned" if spec.pinned is not None else "a sequence"
            yield Problem(
                f"{request.target_keyspace}.{name}",
                f"table {name} is {what} in the vschema, which cannot be carried yet",
            )
        elif spec.kind is TableKind.PLAIN and spec.primary_vindex is None:
            yield Problem(
                f"{request.target_keyspace}.{name}",
                f"table {name} has no vindex in the vschema of keyspace {request.target_keyspace}",
            )


CHECK = Check(
    id="TG-PF-110",
    title="A table is not in the vschema of the sharded target",
    severity=Severity.ERROR,
    cause="Without a vindex nobody can say to which shard a row belongs.",
    remedy=(
        "add the table to the vschema of the target keyspace, with its sharding column, or as"
        " a reference table"
    ),
    find=find,
    again=frozenset({Verb.SWITCH}),
)
