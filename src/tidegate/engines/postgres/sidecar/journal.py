"""The journal of a switch at its source shards: the point of no return, and the door before it.

The journal lies where the fence lies, so that whoever finds the fence can find out how the switch
ends. The first journal written, on any source, decides: from then on the switch only goes forward.

A coordinator may be stopped for any time just before it writes the journal, and somebody else may
have taken the switch back meanwhile. So a switch first *announces* itself at every source, and a
journal can only be written where its announcement still stands, in the transaction that removes it.
Whoever takes over *closes* every source first: the announcement goes, and the same transaction says
whether the journal is there. After all sources are closed nobody else can write one, and what was
found is the decision.

The same stopped coordinator must not lift a fence that a later switch has raised, nor raise one
that nobody would lift: :func:`latest` lets it touch a shard's fence only while no later switch of
the workflow has announced itself there.

The table of the journals themselves is in ``schema.sql``; the announcements' is here. This module
must not decide what a journal means; :mod:`tidegate.workflow.switch` does.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.types.json import Jsonb

from tidegate import steps
from tidegate.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import Connection
    from psycopg.rows import TupleRow

DDL = """
CREATE TABLE IF NOT EXISTS _tidegate.switch_announced (
    workflow_uuid uuid NOT NULL,
    direction text NOT NULL,
    ordinal bigint NOT NULL,
    token text NOT NULL,
    at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (workflow_uuid, direction, ordinal)
);
"""

RESTORE = "do not delete rows of _tidegate.journal; restore it, or open an issue"
"""The next step where a journal that was written is gone."""

BEFORE_COMMIT = steps.declare(
    "switch.journaled.before",
    runs_in="node",
    plan="switch",
    description="a transaction is open that has withdrawn the announcement to write the journal",
)


@dataclass(frozen=True)
class JournalEntry:
    """One journal: which switch of which direction, and all that ends it."""

    direction: str
    ordinal: int
    body: dict[str, Any]


@dataclass(frozen=True)
class SwitchKey:
    """Which switch: the workflow, the direction of its streams, and the operation's number."""

    workflow_uuid: str
    direction: str
    ordinal: int


def announce(connection: Connection[TupleRow], key: SwitchKey, token: str) -> None:
    """Open the door for the journal of a switch, to whoever knows the token."""
    with latest(connection, key):
        connection.execute(
            "INSERT INTO _tidegate.switch_announced AS a (workflow_uuid, direction, ordinal, token)"
            " VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (workflow_uuid, direction, ordinal) DO UPDATE SET token = excluded.token",
            [key.workflow_uuid, key.direction, key.ordinal, token],
        )


@contextmanager
def latest(
    connection: Connection[TupleRow], key: SwitchKey, *, token: str | None = None
) -> Iterator[None]:
    """A transaction that commits only while no later switch of the workflow is known here.

    Args:
        connection: to a shard of either side, in autocommit mode.
        key: which switch.
        token: of its announcement at this shard, which must still stand; None where the caller has
            closed the shard, or the shard is not a source of the switch.

    Raises:
        ConflictError: a later switch has begun, or the announcement is gone.
    """
    with connection.transaction():
        connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 7))", [key.workflow_uuid]
        )
        row = connection.execute(
            "SELECT EXISTS (SELECT FROM _tidegate.switch_announced WHERE workflow_uuid = %(u)s"
            "   AND ordinal > %(o)s)"
            " OR EXISTS (SELECT FROM _tidegate.journal WHERE workflow_uuid = %(u)s"
            "   AND ordinal > %(o)s),"
            " EXISTS (SELECT FROM _tidegate.switch_announced WHERE workflow_uuid = %(u)s"
            "   AND direction = %(d)s AND ordinal = %(o)s AND token = %(t)s)",
            {"u": key.workflow_uuid, "d": key.direction, "o": key.ordinal, "t": token},
        ).fetchone()
        assert row is not None
        if row[0] or (token is not None and not row[1]):
            raise _taken_over(key)
        yield


def _taken_over(key: SwitchKey) -> ConflictError:
    return ConflictError(
        f"the {key.direction} switch {key.ordinal} was taken over by somebody else",
        next_step="look at the workflow and repeat the command",
    )


def write(
    connection: Connection[TupleRow], key: SwitchKey, body: dict[str, Any], token: str | None
) -> None:
    """Write the journal; one that is there already stays as it is.

    Args:
        connection: to a source shard, in autocommit mode.
        key: which switch.
        body: all that a third party needs to end the switch.
        token: of the announcement, which must still stand; None only for whoever has closed every
            source and found a journal at one of them.

    Raises:
        ConflictError: the announcement is gone: somebody else has decided about this switch.
    """
    with connection.transaction():
        if token is not None:
            gone = connection.execute(
                "DELETE FROM _tidegate.switch_announced WHERE workflow_uuid = %s"
                " AND direction = %s AND ordinal = %s AND token = %s",
                [key.workflow_uuid, key.direction, key.ordinal, token],
            )
            if gone.rowcount != 1 and not _exists(connection, key):
                raise _taken_over(key)
        steps.reached(BEFORE_COMMIT)
        connection.execute(
            "INSERT INTO _tidegate.journal (workflow_uuid, direction, ordinal, body)"
            " VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [key.workflow_uuid, key.direction, key.ordinal, Jsonb(body)],
        )


def close(connection: Connection[TupleRow], key: SwitchKey) -> bool:
    """Shut the door and say whether the journal is there; in one transaction."""
    with connection.transaction():
        connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 7))", [key.workflow_uuid]
        )
        connection.execute(
            "DELETE FROM _tidegate.switch_announced"
            " WHERE workflow_uuid = %s AND direction = %s AND ordinal = %s",
            [key.workflow_uuid, key.direction, key.ordinal],
        )
        return _exists(connection, key)


def entries(connection: Connection[TupleRow], workflow_uuid: str) -> list[JournalEntry]:
    """The journals of a workflow at this shard, oldest first; none where nothing is installed."""
    try:
        rows = connection.execute(
            "SELECT direction, ordinal, body FROM _tidegate.journal"
            " WHERE workflow_uuid = %s ORDER BY ordinal",
            [workflow_uuid],
        ).fetchall()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return []
    return [JournalEntry(*row) for row in rows]


def delete(connection: Connection[TupleRow], workflow_uuid: str) -> None:
    """Forget a workflow at this shard."""
    for table in ("journal", "switch_announced"):
        connection.execute(
            f"DELETE FROM _tidegate.{table} WHERE workflow_uuid = %s",  # noqa: S608 - constants
            [workflow_uuid],
        )


def _exists(connection: Connection[TupleRow], key: SwitchKey) -> bool:
    found = connection.execute(
        "SELECT 1 FROM _tidegate.journal"
        " WHERE workflow_uuid = %s AND direction = %s AND ordinal = %s",
        [key.workflow_uuid, key.direction, key.ordinal],
    ).fetchone()
    return found is not None
