"""Lists, for each table, what an application could notice at the target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides
    from tidegate.topology.names import TableName


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Everything about a table that will not be at the target, or not the same."""
    source = facts.sources[0].label if facts.sources else ""
    for name in facts.wanted:
        found = list(dict.fromkeys(_differences(facts, name)))
        if found:
            yield Problem(
                f"{source} {name}",
                f"at the target, {name} differs: {'; '.join(found)}",
                details={"table": str(name), "differences": found},
            )


def _differences(facts: Sides, name: TableName) -> Iterator[str]:
    reached = facts.reached
    yield from (f"trigger {r.name} is left out" for r in reached.triggers if r.table == name)
    yield from (
        f"{stay.part} needs {stay.kind} {stay.relation}, which stays"
        for stay in reached.stays
        if stay.table == name
    )
    yield from (
        f"{unread.part} may use more than could be read in {unread.routine}"
        for unread in reached.unread
        if unread.table == name
    )
    yield from _users(facts, name)
    yield from (f"{r} uses it and does not come along" for r in reached.callers.get(name, ()))
    if any(name in target.tables for target in facts.targets):
        yield "the target's own definition, triggers and grants are kept"


def _users(facts: Sides, name: TableName) -> Iterator[str]:
    """Views and publications that have the table and do not come along."""
    left = dict(facts.reached.views_left)
    for database in facts.sources[:1]:
        for view in database.survey.views.get(name, ()):
            if view not in facts.reached.views:
                yield f"view {view} does not come along: {left.get(view, 'it is not copied')}"
        for publication in database.survey.publications.get(name, ()):
            yield f"publication {publication} does not come along"


CHECK = Check(
    id="TG-PF-244",
    title="What an application could notice at the target",
    severity=Severity.INFO,
    cause=(
        "Tables come along with what they need, not with everything that uses them. This lists, "
        "for each table, what is left behind or differs, so that it can be prepared in time."
    ),
    remedy="create at the target what the application uses, before writes are switched",
    find=find,
)
