"""Refuses to take an owner away from what tables lean on, unless that is accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import Asked, Check, Problem, Severity
from tidegate.engines.postgres.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.facts import Sides

ID = "TG-PF-432"


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Functions, types, schemas and the like whose owner our role cannot set."""
    for each in facts.handed_over:
        yield Problem(
            f"{each.place} {each.what}",
            f"{each.what} will belong to {each.new_owner}; at the source it belongs to"
            f" {each.owner}",
            f"ALTER … OWNER TO {quoted(each.owner)} at the target afterwards, if that matters",
            details={"owner": each.owner, "new_owner": each.new_owner},
        )
    for database in facts.targets:
        refusals = database.rehearsal.refused if database.rehearsal else ()
        for refused in refusals:
            if not facts.is_foreign_owner(refused) or refused.owner is None:
                continue
            yield Problem(
                f"{database.label} {refused.what}",
                f"{refused.what} belongs to {refused.owner}, and role {database.server.role} may"
                f" not give it to {refused.owner}: {refused.message}",
                f"make it there as {refused.owner} first (what exists is left as it is), or"
                f" GRANT {quoted(refused.owner)} TO {quoted(database.server.role)}, or give"
                f" --allow {ID}: then it will belong to {facts.tables_owner}",
                details={"owner": refused.owner, "statement": refused.statement},
            )


CHECK = Check(
    id=ID,
    title="Something the tables lean on belongs to a role that ours cannot act for",
    severity=Severity.ERROR,
    waivable=True,
    cause=(
        "A function, type, domain, schema, collation or sequence that comes along belongs to "
        "another role at the source, often to the superuser. Only a member of that role can give "
        "it to it at the target. When accepted, it belongs to the owner of most of the tables; a "
        "SECURITY DEFINER function then runs with that role's rights."
    ),
    remedy="make it at the target as its owner first, or accept that the tables' owner gets it",
    find=find,
    schema=True,
)
