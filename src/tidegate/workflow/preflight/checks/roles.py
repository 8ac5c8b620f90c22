"""Refuses targets without the roles that the tables' owners and grants name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.workflow.preflight.check import Check, Problem, Severity
from tidegate.workflow.preflight.shape import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.catalog import Table
    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Roles that own or may use a wanted table and do not exist at a target's server."""
    if request.skip_schema_copy:
        return
    needed: dict[str, list[str]] = {}
    for table in facts.model_tables():
        for role in sorted(roles_of(table)):
            needed.setdefault(role, []).append(str(table.name))
    seen: set[str] = set()
    for database in facts.targets:
        if database.server.system_identifier in seen:
            continue
        seen.add(database.server.system_identifier)
        for role, tables in sorted(needed.items()):
            if role not in database.survey.roles:
                yield Problem(
                    f"{database.label} {role}",
                    f"role {role}, which owns or may use {', '.join(tables)}, does not exist",
                    f"CREATE ROLE {quoted(role)} at the target server",
                    details={"role": role, "tables": tables},
                )


def roles_of(table: Table) -> set[str]:
    """The owner and every grantee of a table; PUBLIC is everywhere."""
    roles = {table.owner}
    for item in table.acl:
        grantee = _unquoted(item)
        if grantee:
            roles.add(grantee)
    return roles


def _unquoted(item: str) -> str:
    """The grantee of an access control item, ``grantee=privileges/grantor``."""
    if not item.startswith('"'):
        return item.partition("=")[0]
    end = 1
    while item[end] != '"' or item[end : end + 2] == '""':
        end += 2 if item[end] == '"' else 1
    return item[1:end].replace('""', '"')


CHECK = Check(
    id="TG-PF-409",
    title="A role is missing at the target",
    severity=Severity.ERROR,
    cause=(
        "Owners and grants come along with the tables; they name roles, which belong to a "
        "server and do not."
    ),
    remedy=(
        "CREATE ROLE … at the target server, with the attributes and passwords it should have there"
    ),
    find=find,
)
