"""Statements that make objects, sent many at a time and yet named one by one where one fails.

Decides what a statement of pg_dump is called for people, and how statements are put together: a
thousand tables are made by ten thousand statements, and a round trip for each would take longer
than the server does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import batched
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

ATTEMPTS_A_BATCH: Final = 40


@dataclass(frozen=True)
class Attempt:
    """What one thing is made by; ``what`` names it for people."""

    what: str
    ddl: str


class RefusedError(Exception):
    """The server refused an attempt."""

    def __init__(self, what: str, error: psycopg.Error) -> None:
        super().__init__(f"{what}: {first_line(error)}")
        self.what, self.error = what, error


def batches(attempts: Iterable[Attempt]) -> Iterable[tuple[Attempt, ...]]:
    """The attempts, in order, as many at a time as are sent together."""
    return batched(attempts, ATTEMPTS_A_BATCH, strict=False)


def run(target: Connection[TupleRow], attempts: Sequence[Attempt]) -> None:
    """Make everything, in the transaction that is open.

    Raises:
        RefusedError: one was refused; the transaction is lost.
        psycopg.Error: the session broke.
    """
    for few in batches(attempts):
        if len(few) > 1 and runs(target, "\n".join(each.ddl for each in few)):
            continue
        for attempt in few:
            try:
                target.execute(sql.SQL(attempt.ddl))
            except psycopg.Error as error:
                if target.broken or target.closed:
                    raise
                raise RefusedError(attempt.what, error) from error


def runs(target: Connection[TupleRow], ddl: str) -> bool:
    """Run statements behind a savepoint; False, with nothing done, when one is refused.

    Raises:
        psycopg.Error: the session broke.
    """
    try:
        with target.transaction():
            target.execute(sql.SQL(ddl))
    except psycopg.Error:
        if target.broken or target.closed:
            raise
        return False
    return True


_NAME: Final = r'(?:"(?:[^"]|"")+"|[^\s".(;]+)'
_MAKES: Final = re.compile(
    r"(?:CREATE|ALTER|COMMENT ON|(?:GRANT|REVOKE) [A-Z(), ]+? ON) (?:UNIQUE |MATERIALIZED )?"
    r"(?P<kind>TABLE|INDEX|TRIGGER|SEQUENCE|POLICY|RULE|STATISTICS|COLUMN|VIEW|FUNCTION|SCHEMA"
    r"|TYPE|DOMAIN|CONSTRAINT)(?: ONLY)?"
    rf" (?P<name>{_NAME}(?:\.{_NAME})*)"
)
_CONSTRAINT: Final = re.compile(rf"\s+(?:ADD|DROP) CONSTRAINT (?P<name>{_NAME})")
_ON: Final = re.compile(rf"\sON (?:ONLY )?(?P<name>{_NAME}(?:\.{_NAME})*)")
_OF_TABLES: Final = frozenset({"index", "trigger", "policy", "rule"})
_SHOWN_CHARACTERS: Final = 80


def named(ddl: str) -> Attempt:
    """A statement of pg_dump, called by what it makes: ``index a_b of public.a``."""
    found = _MAKES.search(ddl)
    if found is None:
        return Attempt(" ".join(ddl.split())[:_SHOWN_CHARACTERS], ddl)
    kind, name = found["kind"].lower(), found["name"]
    if part := _CONSTRAINT.match(ddl, found.end()):
        return Attempt(f"constraint {part['name']} of {name}", ddl)
    if kind in _OF_TABLES and (on := _ON.search(ddl, found.end())):
        return Attempt(f"{kind} {name} of {on['name']}", ddl)
    return Attempt(f"{kind} {name}", ddl)


def first_line(error: psycopg.Error) -> str:
    """What the server said, without details."""
    return str(error).partition("\n")[0]
