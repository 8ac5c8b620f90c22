"""Warns of publications that others read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Publications of others that have a wanted table."""
    for database in facts.sources:
        for name in facts.wanted:
            publications = database.survey.publications.get(name, ())
            if publications:
                yield Problem(
                    f"{database.label} {name}",
                    f"{name} is in the publications {', '.join(publications)}",
                    details={"publications": list(publications)},
                )


CHECK = Check(
    id="TG-PF-226",
    title="Somebody else reads the table's changes",
    severity=Severity.WARNING,
    cause=(
        "A publication feeds other consumers: subscriptions, change data capture, search "
        "indexes. After the switch the changes happen at the target, where nobody reads them;"
        " on the way back they would see Tidegate's."
    ),
    remedy="prepare the same publication and its consumers at the target before writes switch",
    find=find,
)
