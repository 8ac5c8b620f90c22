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
that nobody would lift: :meth:`JournalTable.latest` lets it touch a shard's fence only while no
later switch of the workflow has announced itself there.

The table of the journals themselves is in ``schema.sql``; the announcements' is here. This module
must not decide what a journal means; :mod:`tidegate.workflow.switch` does.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.types.json import Jsonb

from tidegate import steps
from tidegate.engines.seam import JournalEntry
from tidegate.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.seam import SwitchKey

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

BEFORE_COMMIT = steps.declare(
    "switch.journaled.before",
    runs_in="node",
    plan="switch",
    description="a transaction is open that has withdrawn the announcement to write the journal",
)


def _taken_over(key: SwitchKey) -> ConflictError:
    return ConflictError(
        f"the {key.direction} switch {key.ordinal} was taken over by somebody else",
        next_step="look at the workflow and repeat the command",
    )


class JournalTable:
    """See :class:`tidegate.engines.seam.Journal`."""

    def __init__(self, conn: psycopg.Connection) -> None:
        self._conn = conn

    def announce(self, key: SwitchKey, token: str) -> None:
        with self.latest(key):
            self._conn.execute(
                "INSERT INTO _tidegate.switch_announced AS a"
                " (workflow_uuid, direction, ordinal, token) VALUES (%s, %s, %s, %s)"
                " ON CONFLICT (workflow_uuid, direction, ordinal)"
                " DO UPDATE SET token = excluded.token",
                [key.workflow_uuid, key.direction, key.ordinal, token],
            )

    @contextmanager
    def latest(self, key: SwitchKey, *, token: str | None = None) -> Iterator[None]:
        """Hold the workflow's lock while no later switch is known."""
        with self._conn.transaction():
            self._conn.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended(%s, 7))", [key.workflow_uuid]
            )
            row = self._conn.execute(
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

    def write(self, key: SwitchKey, body: dict[str, Any], token: str | None) -> None:
        with self._conn.transaction():
            if token is not None:
                gone = self._conn.execute(
                    "DELETE FROM _tidegate.switch_announced WHERE workflow_uuid = %s"
                    " AND direction = %s AND ordinal = %s AND token = %s",
                    [key.workflow_uuid, key.direction, key.ordinal, token],
                )
                if gone.rowcount != 1 and not self._exists(key):
                    raise _taken_over(key)
            steps.reached(BEFORE_COMMIT)
            self._conn.execute(
                "INSERT INTO _tidegate.journal (workflow_uuid, direction, ordinal, body)"
                " VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [key.workflow_uuid, key.direction, key.ordinal, Jsonb(body)],
            )

    def close(self, key: SwitchKey) -> bool:
        with self._conn.transaction():
            self._conn.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended(%s, 7))", [key.workflow_uuid]
            )
            self._conn.execute(
                "DELETE FROM _tidegate.switch_announced"
                " WHERE workflow_uuid = %s AND direction = %s AND ordinal = %s",
                [key.workflow_uuid, key.direction, key.ordinal],
            )
            return self._exists(key)

    def entries(self, workflow_uuid: str) -> list[JournalEntry]:
        try:
            rows = self._conn.execute(
                "SELECT direction, ordinal, body FROM _tidegate.journal"
                " WHERE workflow_uuid = %s ORDER BY ordinal",
                [workflow_uuid],
            ).fetchall()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return []
        return [JournalEntry(*row) for row in rows]

    def delete(self, workflow_uuid: str) -> None:
        for table in ("journal", "switch_announced"):
            self._conn.execute(
                f"DELETE FROM _tidegate.{table} WHERE workflow_uuid = %s",  # noqa: S608 - constants
                [workflow_uuid],
            )

    def _exists(self, key: SwitchKey) -> bool:
        found = self._conn.execute(
            "SELECT 1 FROM _tidegate.journal"
            " WHERE workflow_uuid = %s AND direction = %s AND ordinal = %s",
            [key.workflow_uuid, key.direction, key.ordinal],
        ).fetchone()
        return found is not None
