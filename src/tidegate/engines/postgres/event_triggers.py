"""Names the event trigger that refused a statement.

An event trigger may forbid what Tidegate has to do (DROP TABLE, say); the server then reports the
error of the trigger's function and not the trigger, which is what somebody has to switch off.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql

from tidegate.errors import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import Connection
    from psycopg.rows import TupleRow

#: How CONTEXT names the function that raised, in the languages of servers that were seen.
_FUNCTION: Final = re.compile(
    r"(?:function|funktion|fonction|función)\s+([^\s(]+)\(", re.IGNORECASE
)

_ENABLED: Final = """
SELECT e.evtname::text, p.proname::text, e.evtowner::regrole::text
  FROM pg_event_trigger AS e JOIN pg_proc AS p ON p.oid = e.evtfoid
 WHERE e.evtenabled <> 'D' ORDER BY 1
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
        found = _found(connection, error)
        if found is None:
            raise
        trigger, owner = found
        quoted = sql.Identifier(trigger).as_string(connection)
        said = error.diag.message_primary or str(error)
        raise FailedPreconditionError(
            f"event trigger {trigger} in database {connection.info.dbname} refused a statement:"
            f" {said}",
            next_step=f"as {owner}, ALTER EVENT TRIGGER {quoted} DISABLE, or let it pass the role"
            f" {connection.info.user}; then repeat the command",
            event_trigger=trigger,
            sqlstate=error.sqlstate,
        ) from error


def _found(
    connection: Connection[TupleRow], error: psycopg.DatabaseError
) -> tuple[str, str] | None:
    """(trigger, owner) whose function is in the error's context; None: no event trigger did it."""
    functions = {
        name.rpartition(".")[2].strip('"') for name in _FUNCTION.findall(error.diag.context or "")
    }
    if not functions or connection.broken or connection.closed:
        return None
    try:
        rows = connection.execute(_ENABLED).fetchall()
    except psycopg.Error:
        return None
    return next(((name, owner) for name, proc, owner in rows if proc in functions), None)
