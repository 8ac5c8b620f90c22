"""Says which part of a creation was not tried."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides

NAMED_MAX = 5


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """What the trial at a target did not reach, and event triggers at a source."""
    for database in facts.sources:
        refused = database.rehearsal is not None and database.rehearsal.refused
        if not refused and (names := ", ".join(database.survey.event_triggers)):
            yield Problem(
                database.label,
                f"event triggers run at what is made at {database.label}; they let the schema"
                " _tidegate, a publication and a trigger on a table of Tidegate's own pass, and"
                f" whether they do for the application's tables is not tried: {names}",
                "make sure that they let Tidegate's role pass; if one does not, create changes"
                " nothing and names it",
                {"event_triggers": list(database.survey.event_triggers)},
            )
    for database in facts.targets:
        untried = database.rehearsal.untried if database.rehearsal else ()
        if untried:
            more = f" and {len(untried) - NAMED_MAX} more" if len(untried) > NAMED_MAX else ""
            yield Problem(
                database.label,
                f"not tried at {database.label}: {'; '.join(untried[:NAMED_MAX])}{more}",
                details={"untried": list(untried)},
            )


CHECK = Check(
    id="TG-PF-433",
    title="Something could not be tried",
    severity=Severity.WARNING,
    cause=(
        "A lock was held by others, or the time for the trial was used up, so that `create` may "
        "still fail there. At the source the publication and the slot are judged by rights and "
        "settings alone, since making them would touch the application's tables or wait for its "
        "transactions; event triggers are shown objects of Tidegate's own only."
    ),
    remedy="run it again when nobody alters the target",
    find=find,
    schema=True,
)
