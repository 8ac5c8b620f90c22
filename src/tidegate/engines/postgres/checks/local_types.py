"""Warns of columns whose values name things of their own server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


_LOCAL = {
    "aclitem",
    "cid",
    "pg_snapshot",
    "regclass",
    "regcollation",
    "regconfig",
    "regdictionary",
    "regnamespace",
    "regoper",
    "regoperator",
    "regproc",
    "regprocedure",
    "regrole",
    "regtype",
    "tid",
    "txid_snapshot",
    "xid",
    "xid8",
}


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Columns whose values name objects or transactions of their server."""
    said = set()
    for database, table in facts.source_tables():
        inner = database.survey.inner_types
        columns = [
            f"{column.name} ({column.type_name})"
            for column in table.columns
            if not _LOCAL.isdisjoint(inner.get(column.type_oid, (column.type_name,)))
        ]
        if columns and table.name not in said:
            said.add(table.name)
            yield Problem(str(table.name), f"{', '.join(columns)} of {table.name}")


CHECK = Check(
    id="TG-PF-218",
    title="Values mean something on their own server only",
    severity=Severity.WARNING,
    cause=(
        "Values of these types name objects or transactions of one server. They are carried "
        "as text; whether they mean the same at the target, only you know."
    ),
    remedy="make sure that what the values name exists at the target too",
    find=find,
)
