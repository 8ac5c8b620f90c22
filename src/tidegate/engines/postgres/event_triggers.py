"""Names the event trigger that refused a statement.

An event trigger may forbid what Tidegate has to do (DROP TABLE, say); the server then reports the
error of the trigger's function and not the trigger, which is what somebody has to switch off.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql

from tidegate.errors import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from psycopg import Connection
    from psycopg.rows import TupleRow

#: How CONTEXT names the function that raised, in the languages of servers that were seen.
_FUNCTION: Final = re.compile(
    r"(?:function|funktion|fonction|función)\s+([^\s(]+)\(", re.IGNORECASE
)

_MADE_AT_A_SOURCE: Final = (
    *("CREATE PUBLICATION", "CREATE SCHEMA", "CREATE TABLE", "CREATE INDEX"),
    *("CREATE FUNCTION", "CREATE TRIGGER", "ALTER TABLE"),
)

_ENABLED: Final = """
SELECT e.evtname::text, p.proname::text, e.evtowner::regrole::text
  FROM pg_event_trigger AS e JOIN pg_proc AS p ON p.oid = e.evtfoid
 WHERE e.evtenabled IN ('O', 'A')
   AND (%(tags)s = '{}'::text[] OR e.evtevent IN ('ddl_command_start', 'ddl_command_end')
        AND (e.evttags IS NULL OR e.evttags && %(tags)s::text[]))
 ORDER BY 1
"""


@contextmanager
def named(connection: Connection[TupleRow]) -> Iterator[None]:
    """Turn the error of an event trigger's function into one that names the trigger.

    Raises:
        FailedPreconditionError: naming the trigger, what it said, and how to go on.
        psycopg.Error: what failed for another reason, unchanged.
    """
    try:
        yield
    except psycopg.OperationalError:
        raise
    except psycopg.DatabaseError as error:
        found = behind(connection, error)
        if found is None:
            raise
        said = error.diag.message_primary or str(error)
        raise FailedPreconditionError(
            f"event trigger {found.name} in database {connection.info.dbname} refused a statement:"
            f" {said}",
            next_step=f"{found.way_on(connection)}; then repeat the command",
            event_trigger=found.name,
            sqlstate=error.sqlstate,
        ) from error


@dataclass(frozen=True)
class EventTrigger:
    """An event trigger that is enabled, and who owns it."""

    name: str
    owner: str

    def way_on(self, connection: Connection[TupleRow]) -> str:
        """What lets our statements pass."""
        quoted = sql.Identifier(self.name).as_string(connection)
        return (
            f"as {self.owner}, ALTER EVENT TRIGGER {quoted} DISABLE, or let it pass the role"
            f" {connection.info.user}"
        )


def enabled(connection: Connection[TupleRow], tags: Iterable[str] = ()) -> list[EventTrigger]:
    """The event triggers that run at our statements; of ``tags``, those that run at any of them."""
    rows = connection.execute(_ENABLED, {"tags": list(tags)}).fetchall()
    return [EventTrigger(name, owner) for name, _, owner in rows]


def at_a_source(connection: Connection[TupleRow]) -> tuple[str, ...]:
    """Names of those that run at what a creation makes at a source."""
    return tuple(trigger.name for trigger in enabled(connection, _MADE_AT_A_SOURCE))


def behind(connection: Connection[TupleRow], error: psycopg.Error) -> EventTrigger | None:
    """The trigger whose function is in the error's context; None: no event trigger did it."""
    found = _found(connection, error)
    return None if found is None else EventTrigger(*found)


def _found(connection: Connection[TupleRow], error: psycopg.Error) -> tuple[str, str] | None:
    """Its name and owner."""
    functions = {
        name.rpartition(".")[2].strip('"') for name in _FUNCTION.findall(error.diag.context or "")
    }
    if not functions or connection.broken or connection.closed:
        return None
    try:
        rows = connection.execute(_ENABLED, {"tags": []}).fetchall()
    except psycopg.Error:
        return None
    return next(((name, owner) for name, proc, owner in rows if proc in functions), None)
