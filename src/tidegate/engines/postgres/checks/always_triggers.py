"""Refuses user triggers that fire for applied rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity
from tidegate.engines.postgres.quoting import quoted, quoted_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(request: Asked, facts: Sides) -> Iterator[Problem]:
    """User triggers that fire in replica mode where rows are applied, now or on the way back."""
    for database, table in facts.all_tables():
        for trigger in table.triggers:
            if trigger.enabled in {"A", "R"} and not trigger.own:
                mode = "ALWAYS" if trigger.enabled == "A" else "REPLICA"
                yield Problem(
                    f"{database.label} {table.name}",
                    f"trigger {trigger.name} of {table.name} is ENABLE {mode}",
                    f"ALTER TABLE {quoted_table(table.name)} ENABLE TRIGGER {quoted(trigger.name)}",
                    details={"trigger": trigger.name, "workflow": request.workflow},
                )


CHECK = Check(
    id="TG-PF-408",
    title="A trigger fires for carried rows too",
    severity=Severity.ERROR,
    cause=(
        "A trigger that is ENABLE ALWAYS or ENABLE REPLICA fires for rows that the stream "
        "applies: its effects would happen twice."
    ),
    remedy="ALTER TABLE … ENABLE TRIGGER …, which makes it fire for the application only",
    find=find,
    streaming=True,
)
