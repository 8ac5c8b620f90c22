"""Refuses to leave tables behind that were made in a keyspace while it is resharded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Check, Problem, Severity
from tidegate.workflow.preflight.check import Verb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Tables of a resharded keyspace that its workflow does not carry, on the side that is left."""
    since = facts.since
    if since is None or not request.reshards or since.keeps_source:
        return
    wanted = set(facts.wanted) | set(facts.unknown)
    back = since.verb is Verb.REVERSE
    if back and since.then is None:
        return  # nobody knows which tables were there before
    for database in facts.targets if back else facts.sources:
        known = since.then.others.get(database.label, ()) if since.then else ()
        for name in sorted(set(database.tables) - wanted):
            if str(name) not in known:
                yield Problem(
                    f"{database.label} {name}",
                    f"table {name} was made after workflow {request.workflow}, which does not"
                    f" carry it: it would stay behind on {database.label}, where no route leads",
                    f"drop {name}, or move it to another keyspace; to have it carried, cancel the"
                    " workflow and create it again",
                    details={"table": str(name)},
                )


CHECK = Check(
    id="TG-PF-501",
    title="A table was made while the keyspace is resharded",
    severity=Severity.ERROR,
    cause=(
        "A reshard carries the tables there were when it was created. One that was made later is on"
        " the old shards only, which serve nobody after the switch."
    ),
    remedy="drop the table, move it to another keyspace, or create the reshard again",
    find=find,
    again=frozenset({Verb.SWITCH, Verb.REVERSE, Verb.COMPLETE}),
)
