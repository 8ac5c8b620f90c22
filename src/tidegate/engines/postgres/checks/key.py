"""Refuses tables whose rows cannot be told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity
from tidegate.engines.postgres import identities
from tidegate.engines.postgres.catalog import key_columns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Tables with neither a primary key nor an index as replica identity."""
    for database, table in facts.source_tables():
        if table.kind == "r" and not key_columns(table) and not table.primary_key_deferrable:
            choice = identities.choice(table)
            if choice is None:
                yield Problem(
                    f"{database.label} {table.name}",
                    f"table {table.name} has no primary key and no replica identity index",
                )
                continue
            yield Problem(
                f"{database.label} {table.name}",
                f"table {table.name} has no primary key; its unique index {choice.index} over"
                f" ({', '.join(choice.columns)}), NOT NULL, can identify its rows",
                f"add --set-identity, which runs it under a short lock and puts it back at the end,"
                f" or run: {choice.statement()}",
                {"statement": choice.statement()},
            )


CHECK = Check(
    id="TG-PF-201",
    title="A table has no usable key",
    severity=Severity.ERROR,
    cause=(
        "Copy, stream and diff tell rows apart by a key that is unique at every moment: the "
        "primary key, or the not-null unique index that is the replica identity."
    ),
    remedy=(
        "add a primary key, or a unique index on NOT NULL columns and --set-identity, which makes"
        " it the replica identity"
    ),
    find=find,
    streaming=True,
    each_side=True,
)
