"""Gives what tables lean on to another role than the one that owns it at the source.

Decides which statements of a schema plan say so: those that change an owner, and nothing else of
the text; a function's body may hold the same words.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from psycopg import sql

from tidegate.engines.postgres import script

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tidegate.engines.postgres.schema_copy import SchemaPlan

_CHANGES_OWNER: Final = re.compile(
    r'ALTER\s.*\sOWNER TO (?P<role>"(?:[^"]|"")+"|[^\s";]+)', re.DOTALL
)


def new_owner(statement: str) -> str | None:
    """The role that a statement makes the owner of something; None when it does no such thing."""
    found = _CHANGES_OWNER.fullmatch(statement.strip().removesuffix(";"))
    if found is None or statement.split(maxsplit=1)[0] != "ALTER":
        return None
    role = found["role"]
    return role[1:-1].replace('""', '"') if role.startswith('"') else role


def handed_over(plan: SchemaPlan, roles: Mapping[str, str]) -> SchemaPlan:
    """The plan with everything that would belong to one of these roles given to another."""
    return replace(
        plan,
        support=tuple(replace(s, ddl=_handed(s.ddl, roles)) for s in plan.support),
        pre_data=tuple(_handed(ddl, roles) for ddl in plan.pre_data),
        keys=tuple(_handed(ddl, roles) for ddl in plan.keys),
        after_copy=tuple((table, _handed(ddl, roles)) for table, ddl in plan.after_copy),
        after_catchup=tuple((table, _handed(ddl, roles)) for table, ddl in plan.after_catchup),
    )


def _handed(ddl: str, roles: Mapping[str, str]) -> str:
    parts = []
    at = 0
    for statement in script.statements(ddl):
        owner = new_owner(statement.text)
        if owner is None or owner not in roles:
            continue
        end = statement.start + len(statement.text)
        head, _, _ = statement.text.rpartition(" OWNER TO ")
        parts += [ddl[at : statement.start], head, " OWNER TO "]
        parts.append(sql.Identifier(roles[owner]).as_string())
        at = end
    return "".join([*parts, ddl[at:]])
