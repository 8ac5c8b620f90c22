"""The statements on rows of ``_tidegate.stream`` that are not a worker's transactions.

Those, at every batch, are in :mod:`~tidegate.engines.postgres.sidecar.stream_row`. States are
parameters: which of them may follow which, the data plane decides. The columns are those of
``schema.sql``; whoever changes a row notifies channel ``_tidegate``.
"""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.types.json import Jsonb

from tidegate.engines.postgres.position import Position, format_lsn, parse_lsn
from tidegate.engines.postgres.sidecar import stream_log
from tidegate.engines.seam import LockedError, StreamFacts, StreamRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import timedelta

    from tidegate.engines import seam

CHANNEL = "_tidegate"
RENEW_LOCK_MS = 200

_GIVEN = tuple(each.name for each in dataclasses.fields(StreamFacts))
_NAMES = tuple(each.name for each in dataclasses.fields(StreamRecord))
_LSNS = ("lsn", "h_lsn", "stop_lsn")
_COLUMNS = ", ".join(f"{n}::text" if n in (*_LSNS, "workflow_uuid") else n for n in _NAMES)
_END_BACKENDS = (
    "SELECT pg_terminate_backend(a.pid) FROM _tidegate.stream AS s, pg_stat_activity AS a"
    " WHERE s.id = %s AND a.pid = ANY(s.backends) AND a.application_name LIKE 'tidegate/%%'"
    " AND a.pid <> pg_backend_pid()"
)


def _record(values: Sequence[Any]) -> StreamRecord:
    facts = dict(zip(_NAMES, values, strict=True))
    for name in _LSNS:
        facts[name] = None if facts[name] is None else parse_lsn(facts[name])
    facts["backends"] = tuple(facts["backends"])
    return StreamRecord(**facts)


class StreamTable:
    """See :class:`tidegate.engines.seam.Streams`."""

    def __init__(self, conn: psycopg.Connection) -> None:
        self._conn = conn

    def are_installed(self) -> bool:
        row = self._conn.execute("SELECT to_regclass('_tidegate.stream') IS NOT NULL").fetchone()
        return row == (True,)

    # rows

    def insert(self, facts: StreamFacts, position: seam.Position | None) -> int | None:
        assert position is None or isinstance(position, Position)
        lsn = None if position is None else format_lsn(position.lsn)
        values = [getattr(facts, name) for name in _GIVEN]
        values[_GIVEN.index("spec")] = Jsonb(facts.spec)
        row = self._conn.execute(
            f"INSERT INTO _tidegate.stream ({', '.join(_GIVEN)},"  # noqa: S608 - constant columns
            " system_identifier, timeline, lsn, h_lsn, heartbeat_at)"
            f" VALUES ({'%s, ' * len(_GIVEN)} %s, %s, %s, %s,"
            "  CASE WHEN %s THEN clock_timestamp() END)"
            " ON CONFLICT (workflow_uuid, direction, source_shard) DO NOTHING RETURNING id",
            [
                *values,
                None if position is None else position.system_identifier,
                None if position is None else position.timeline,
                *(lsn, lsn, position is not None),
            ],
        ).fetchone()
        return None if row is None else int(row[0])

    def read(self, stream_id: int) -> StreamRecord | None:
        row = self._conn.execute(
            f"SELECT {_COLUMNS} FROM _tidegate.stream WHERE id = %s",  # noqa: S608 - constant columns
            [stream_id],
        ).fetchone()
        return None if row is None else _record(row)

    def read_all(self, workflow_uuid: str | None, direction: str | None) -> list[StreamRecord]:
        rows = self._conn.execute(
            f"SELECT {_COLUMNS} FROM _tidegate.stream"  # noqa: S608 - constant columns
            " WHERE (%(uuid)s::uuid IS NULL OR workflow_uuid = %(uuid)s)"
            " AND (%(direction)s::text IS NULL OR direction = %(direction)s) ORDER BY id",
            {"uuid": workflow_uuid, "direction": direction},
        ).fetchall()
        return [_record(row) for row in rows]

    def delete(self, workflow_uuid: str, direction: str) -> int:
        deleted = self._conn.execute(
            "DELETE FROM _tidegate.stream WHERE workflow_uuid = %s AND direction = %s",
            [workflow_uuid, direction],
        ).rowcount
        self._conn.execute(
            "DELETE FROM _tidegate.post_copy_action AS a WHERE workflow_uuid = %s"
            " AND NOT EXISTS (SELECT FROM _tidegate.stream AS s"
            "  WHERE s.workflow_uuid = a.workflow_uuid)",
            [workflow_uuid],
        )
        return deleted

    # states and bounds

    def lock(self, stream_id: int) -> tuple[str, str] | None:
        row = self._conn.execute(
            "SELECT state, message FROM _tidegate.stream WHERE id = %s FOR UPDATE", [stream_id]
        ).fetchone()
        return None if row is None else (row[0], row[1])

    def set_state(self, stream_id: int, state: str, message: str, *, active: bool) -> None:
        self._conn.execute(
            "UPDATE _tidegate.stream SET state = %(state)s, message = %(message)s,"
            " updated_at = clock_timestamp(),"
            " hold_until = CASE WHEN %(active)s THEN NULL ELSE hold_until END,"
            " stop_lsn = CASE WHEN %(active)s AND lsn >= stop_lsn THEN NULL ELSE stop_lsn END"
            " WHERE id = %(id)s",
            {"state": state, "message": message, "id": stream_id, "active": active},
        )

    def tell(
        self, stream_id: int, epoch: int, message: str, before: Sequence[str], after: str | None
    ) -> str | None:
        row = self._conn.execute(
            "UPDATE _tidegate.stream SET message = %s, state = coalesce(%s, state)"
            " WHERE id = %s AND epoch <= %s AND state = ANY(%s) RETURNING state",
            [message, after, stream_id, epoch, list(before)],
        ).fetchone()
        return None if row is None else str(row[0])

    def set_stop(
        self, stream_ids: Sequence[int], lsn: int | None, hold_for: timedelta | None
    ) -> None:
        self._conn.execute(
            "UPDATE _tidegate.stream SET stop_lsn = %s, hold_until = clock_timestamp() + %s"
            " WHERE id = ANY(%s)",
            [None if lsn is None else format_lsn(lsn), hold_for, list(stream_ids)],
        )

    # the log, and what is notified

    def log(self, stream_id: int, state: str, message: str, code: str = "") -> None:
        stream_log.log(self._conn, stream_id, state, message, code)

    def notify(self, stream_id: int | None = None) -> None:
        self._conn.execute("SELECT pg_notify(%s, %s)", [CHANNEL, str(stream_id or "")])

    def ask(self, question: str, stream_ids: Iterable[int]) -> set[int]:
        asked = self._conn.execute(
            "SELECT s.id, pg_notify(%s, %s || s.id) FROM _tidegate.stream AS s WHERE s.id = ANY(%s)"
            " AND EXISTS (SELECT FROM pg_stat_activity AS a WHERE a.pid = ANY(s.backends))",
            [CHANNEL, question, list(stream_ids)],
        ).fetchall()
        return {row[0] for row in asked}

    def listen(self) -> None:
        self._conn.execute(f"LISTEN {CHANNEL}")

    def heard(self) -> list[str]:
        return [each.payload for each in self._conn.notifies(timeout=0)]

    def stop_listening(self) -> None:
        """Listen no longer; a connection that is lost listens to nothing."""
        with suppress(psycopg.Error):
            self._conn.execute("UNLISTEN *")

    def silent(self, state: str, least: timedelta, most: timedelta) -> list[int]:
        rows = self._conn.execute(
            "SELECT id FROM _tidegate.stream WHERE state = %s"
            " AND clock_timestamp() - heartbeat_at BETWEEN %s AND %s",
            [state, least, most],
        ).fetchall()
        return [row[0] for row in rows]

    # epochs and sessions

    def record_backend(self, stream_id: int, epoch: int) -> bool:
        done = self._conn.execute(
            "UPDATE _tidegate.stream SET backends = (SELECT array_agg(DISTINCT b.pid) FROM"
            "  (SELECT unnest(backends) AS pid UNION SELECT pg_backend_pid()) AS b"
            "  JOIN pg_stat_activity AS a ON a.pid = b.pid)"
            " WHERE id = %s AND epoch = %s",
            [stream_id, epoch],
        )
        return done.rowcount == 1

    def end_backends(self, stream_id: int) -> None:
        self._conn.execute(_END_BACKENDS, [stream_id])

    def raise_epoch(self, stream_id: int, epoch: int, wait_s: float) -> bool:
        self._conn.execute(f"SET LOCAL lock_timeout = {round(wait_s * 1000)}")
        try:
            raised = self._conn.execute(
                "UPDATE _tidegate.stream SET epoch = %s, backends = '{}'"
                " WHERE id = %s AND epoch < %s",
                [epoch, stream_id, epoch],
            )
        except psycopg.errors.LockNotAvailable as error:
            look = "look in pg_locks for who holds a row of _tidegate.stream"
            raise LockedError(look) from error
        return raised.rowcount == 1

    def epochs(self, workflow_uuid: str) -> list[int]:
        if not self.are_installed():
            return []
        query = "SELECT epoch FROM _tidegate.stream WHERE workflow_uuid = %s"
        return [row[0] for row in self._conn.execute(query, [workflow_uuid])]

    def raise_epochs(self, workflow_uuid: str, epoch: int) -> None:
        self._conn.execute(
            "UPDATE _tidegate.stream SET epoch = %(epoch)s"
            " WHERE workflow_uuid = %(uuid)s AND epoch < %(epoch)s",
            {"epoch": epoch, "uuid": workflow_uuid},
        )

    # the copy, and the tables it began with

    def begin_copy(
        self,
        stream_id: int,
        epoch: int,
        position: seam.Position,
        *,
        before: Sequence[str],
        after: str,
    ) -> bool:
        assert isinstance(position, Position)
        done = self._conn.execute(
            "UPDATE _tidegate.stream SET lsn = coalesce(lsn, %s), timeline ="
            " coalesce(timeline, %s), system_identifier = coalesce(system_identifier, %s),"
            " state = CASE WHEN state = ANY(%s) THEN %s ELSE state END"
            " WHERE id = %s AND epoch = %s",
            [
                *(format_lsn(position.lsn), position.timeline, position.system_identifier),
                *(list(before), after, stream_id, epoch),
            ],
        )
        return done.rowcount == 1

    def count_copied(self, stream_id: int, epoch: int) -> None:
        with suppress(psycopg.errors.LockNotAvailable):
            self._conn.execute(
                "UPDATE _tidegate.stream AS s SET rows_copied = c.rows, bytes_copied = c.bytes,"
                " heartbeat_at = now() FROM (SELECT coalesce(sum(rows), 0)::bigint AS rows,"
                "  coalesce(sum(bytes), 0)::bigint AS bytes FROM _tidegate.copy_state"
                "  WHERE stream_id = %(id)s) AS c WHERE s.id = %(id)s AND s.epoch = %(epoch)s",
                {"id": stream_id, "epoch": epoch},
            )

    def end_copy(
        self,
        stream_id: int,
        epoch: int,
        h_lsn: int,
        *,
        before: Sequence[str],
        after: str,
        message: str,
    ) -> tuple[str, str] | None:
        states = list(before)
        row = self._conn.execute(
            "UPDATE _tidegate.stream SET h_lsn = coalesce(h_lsn, %s), updated_at = now(),"
            " (rows_copied, bytes_copied) = (SELECT coalesce(sum(rows), 0),"
            "  coalesce(sum(bytes), 0) FROM _tidegate.copy_state WHERE stream_id = stream.id),"
            " state = CASE WHEN state = ANY(%s) THEN %s ELSE state END,"
            " message = CASE WHEN state = ANY(%s) THEN %s ELSE message END"
            " WHERE id = %s AND epoch = %s RETURNING state, message",
            [format_lsn(h_lsn), states, after, states, message, stream_id, epoch],
        ).fetchone()
        return None if row is None else (row[0], row[1])

    def observe(
        self, stream_id: int, epoch: int, tables: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        row = self._conn.execute(
            "UPDATE _tidegate.stream SET observed = coalesce(observed, %s)"
            " WHERE id = %s AND epoch = %s RETURNING observed",
            [Jsonb(tables), stream_id, epoch],
        ).fetchone()
        return None if row is None else row[0]

    def observe_again(self, stream_id: int, epoch: int, tables: Mapping[str, Any]) -> None:
        """Store a later look; while the row is locked the old one still serves."""
        with suppress(psycopg.errors.LockNotAvailable), self._conn.transaction():
            self._conn.execute(f"SET LOCAL lock_timeout = {RENEW_LOCK_MS}")
            self._conn.execute(
                "UPDATE _tidegate.stream SET observed = %s WHERE id = %s AND epoch = %s",
                [Jsonb(tables), stream_id, epoch],
            )

    def forget_observed(self, stream_id: int) -> None:
        self._conn.execute("UPDATE _tidegate.stream SET observed = NULL WHERE id = %s", [stream_id])

    def shown(self, lsn: int) -> str:
        return format_lsn(lsn)
