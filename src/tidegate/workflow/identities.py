"""Tables without a primary key: which unique index a workflow takes as their identity.

Decides, with ``--set-identity``, what the preflight may take for granted and what the record must
know: the index and the identity before, so that whoever ends the workflow puts it back. Setting and
restoring are :mod:`tidegate.engines.postgres.identities`' business.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tidegate.engines.postgres import identities
from tidegate.workflow import objects

if TYPE_CHECKING:
    from tidegate.engines.postgres.catalog import Table
    from tidegate.engines.postgres.facts import DatabaseFacts
    from tidegate.engines.postgres.identities import Choice
    from tidegate.workflow.preflight.facts import Facts
    from tidegate.workflow.work import Work


def chosen(facts: Facts) -> tuple[Choice, ...]:
    """The index of each wanted table that has no key; it must be the same at every source shard."""
    found = []
    for name in facts.wanted:
        tables = [source.tables[name] for source in facts.sources if name in source.tables]
        choices = [identities.choice(table) for table in tables]
        first = choices[0] if choices else None
        if first is not None and all(each == first for each in choices):
            found.append(first)
    return tuple(found)


def assumed(facts: Facts, choices: tuple[Choice, ...]) -> Facts:
    """The facts as they will be once the identities are set."""
    by_name = {choice.name: choice for choice in choices}

    def changed(source: DatabaseFacts) -> DatabaseFacts:
        tables = {name: _assumed(table, by_name.get(name)) for name, table in source.tables.items()}
        return replace(source, tables=tables)

    return replace(facts, sources=tuple(map(changed, facts.sources)))


def _assumed(table: Table, choice: Choice | None) -> Table:
    if choice is None:
        return table
    return replace(table, replica_identity="index", replica_identity_columns=choice.columns)


def set_at_source(work: Work) -> None:
    """Set them; the record knows of them already."""
    if work.workflow.identities:
        objects.at_source(
            work, lambda _s, session: identities.set_all(session, work.workflow.identities)
        )


def restore(work: Work) -> None:
    """Put them back on both sides, where the tables are still there; repeatable."""
    if not work.workflow.identities:
        return
    for at in (objects.at_source, objects.at_target):
        at(work, lambda _s, session: identities.restore_all(session, work.workflow.identities))
