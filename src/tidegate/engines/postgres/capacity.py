"""Knows how much log a source keeps for a slot, how much room is left, and when it is too much.

A slot keeps log until its stream has applied it; a stream that lags or stands still fills the
source's disk, and a full disk stops the source. So a stream is stopped with an alarm while there
is as much room left as the log already takes: half of what there was (:func:`retention_alarm`).

PostgreSQL does not say how full its disk is. Where our role may run programs on the server
(superuser, or ``pg_execute_server_program``) ``df`` is asked, through a temporary table in a
transaction that is always rolled back; elsewhere the operator's budget or
``max_slot_wal_keep_size`` is the only bound known, and where there is none of them the answer is
"unknown", never a guess.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg import Connection
    from psycopg.rows import TupleRow

DF_TIMEOUT_S = 5.0
LOOK_BYTES = 16 * 1024 * 1024
"""The disk is asked again at the latest when so much log was written since ..."""
LOOK_SHARE = 8
"""... and sooner where this part of the room that is left before an alarm is less."""

LimitSource = Literal["budget", "max_slot_wal_keep_size", "disk", "unknown"]

_AVAILABLE = re.compile(r"\s(\d+)\s+\d+%\s")


@dataclass(frozen=True)
class Capacity:
    """Room on a source, in bytes; ``None`` where nobody can know.

    Attributes:
        retained_bytes: log kept for the slots asked about; shared between them.
        free_bytes: free on the file system of the log.
        data_free_bytes: free on the file system of the data directory.
        limit_bytes: how much log may be kept before the alarm.
        source_of_limit: where that number comes from.
    """

    retained_bytes: int = 0
    free_bytes: int | None = None
    data_free_bytes: int | None = None
    limit_bytes: int | None = None
    source_of_limit: LimitSource = "unknown"


@dataclass(frozen=True)
class RetentionAlarm:
    """Why a stream must stop before the source fills."""

    retained_bytes: int
    limit_bytes: int
    source_of_limit: LimitSource

    def __str__(self) -> str:
        why = {
            "budget": "the budget for it is",
            "max_slot_wal_keep_size": "half of max_slot_wal_keep_size is",
            "disk": "half of the room there was is",
            "unknown": "the limit is",
        }[self.source_of_limit]
        return (
            f"the source keeps {_size(self.retained_bytes)} of log for the stream;"
            f" {why} {_size(self.limit_bytes)}"
        )


def retention_alarm(capacity: Capacity) -> RetentionAlarm | None:
    """The alarm, when the log kept has reached its limit."""
    if capacity.limit_bytes is None or capacity.retained_bytes < capacity.limit_bytes:
        return None
    return RetentionAlarm(capacity.retained_bytes, capacity.limit_bytes, capacity.source_of_limit)


def limit(
    retained_bytes: int,
    *,
    free_bytes: int | None,
    keep_bytes: int | None,
    budget_bytes: int | None,
) -> tuple[int | None, LimitSource]:
    """The tightest limit known, and where it comes from.

    Args:
        retained_bytes: log kept now.
        free_bytes: room left now, beside it.
        keep_bytes: ``max_slot_wal_keep_size``; beyond it the server drops the slot's log.
        budget_bytes: what the operator allows.
    """
    known: list[tuple[int, LimitSource]] = []
    if budget_bytes is not None:
        known.append((budget_bytes, "budget"))
    if keep_bytes is not None:
        known.append((keep_bytes // 2, "max_slot_wal_keep_size"))
    if free_bytes is not None:
        known.append(((retained_bytes + free_bytes) // 2, "disk"))
    return min(known) if known else (None, "unknown")


class Disk:
    """What a source's disk had left, and how far its log was then.

    Asking writes a little log itself. Done in a fixed rhythm it would keep a source that stands
    still from ever doing so, and with it every stream that reads there.
    """

    def __init__(self) -> None:
        self._free: tuple[int | None, int | None] = (None, None)
        self._lsn = self._next_lsn = 0

    def free(
        self, connection: Connection[TupleRow], lsn: int, retained: int
    ) -> tuple[int | None, int | None]:
        """Free bytes of the log's and the data's file system, as far as it may matter.

        Args:
            connection: a session in autocommit mode.
            lsn: the end of the source's log.
            retained: log kept for the slots in question.
        """
        if lsn >= self._next_lsn:
            self._lsn, self._free = lsn, _free(connection)
            room = LOOK_BYTES if self._free[0] is None else (self._free[0] - retained) // 2
            self._next_lsn = lsn + max(0, min(LOOK_BYTES, room // LOOK_SHARE))
        wal, data = self._free
        return None if wal is None else max(0, wal - (lsn - self._lsn)), data


def read_capacity(
    connection: Connection[TupleRow],
    slots: Iterable[str] = (),
    *,
    budget_bytes: int | None = None,
    disk: Disk | None = None,
) -> Capacity:
    """What is kept for the named slots, and the room there is; nothing of the look remains.

    Args:
        connection: a session in autocommit mode.
        slots: names; one that does not exist keeps nothing.
        budget_bytes: how much log the operator allows to be kept.
        disk: of whoever looks again and again; None asks the disk now.
    """
    row = connection.execute(
        "SELECT coalesce((SELECT max(greatest(pg_wal_lsn_diff("
        "   CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn()"
        "        ELSE pg_current_wal_insert_lsn() END, restart_lsn), 0))"
        "   FROM pg_replication_slots WHERE slot_name = ANY(%s)), 0)::int8,"
        " (SELECT nullif(setting::int8, -1) * 1024 * 1024 FROM pg_settings"
        "   WHERE name = 'max_slot_wal_keep_size'),"
        " pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn()"
        "   ELSE pg_current_wal_insert_lsn() END, '0/0')::int8",
        [list(slots)],
    ).fetchone()
    assert row is not None
    retained, keep, lsn = row
    free, data_free = (disk or Disk()).free(connection, lsn or 0, retained)
    bound, source = limit(retained, free_bytes=free, keep_bytes=keep, budget_bytes=budget_bytes)
    return Capacity(retained, free, data_free, bound, source)


def log_end_and_kept(connection: Connection[TupleRow], slot: str) -> tuple[int, int | None]:
    """Where the source's log ends, an LSN, and the bytes of it kept for a slot; one statement.

    None: there is no such slot.
    """
    row = connection.execute(
        "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::int8,"
        " (SELECT greatest(coalesce(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn), 0),"
        "   0)::int8 FROM pg_replication_slots WHERE slot_name = %s)",
        [slot],
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def _free(connection: Connection[TupleRow]) -> tuple[int | None, int | None]:
    """Free bytes of the log's and the data's file system, where our role may ask."""
    allowed = connection.execute(
        "SELECT pg_has_role(session_user, 'pg_execute_server_program', 'USAGE')"
        "   AND pg_has_role(session_user, 'pg_read_all_settings', 'USAGE')"
    ).fetchone()
    if allowed != (True,):
        return None, None
    row = connection.execute("SELECT current_setting('data_directory')").fetchone()
    assert row is not None
    found = _df(connection, f"{row[0]}/pg_wal", row[0])
    return found[0], found[1]


def _df(connection: Connection[TupleRow], *paths: str) -> list[int | None]:
    """What ``df`` says of each path; one program and one table for all."""
    command = f"df -Pk {' '.join(map(shlex.quote, paths))}"
    unknown: list[int | None] = [None] * len(paths)
    try:
        with connection.transaction(force_rollback=True), connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL statement_timeout = {round(DF_TIMEOUT_S * 1000)}")
            cursor.execute("SET LOCAL client_min_messages = warning")
            cursor.execute("CREATE TEMPORARY TABLE tidegate_df (line text)")
            quoted = command.replace("'", "''")
            cursor.execute(f"COPY pg_temp.tidegate_df FROM PROGRAM '{quoted}'")
            lines = cursor.execute("SELECT line FROM pg_temp.tidegate_df").fetchall()
    except psycopg.errors.DiskFull:
        return [0] * len(paths)
    except (psycopg.errors.ExternalRoutineException, psycopg.errors.QueryCanceled):
        return unknown
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.DataException):
        return unknown
    except psycopg.errors.ReadOnlySqlTransaction:  # a standby, or a session made read-only
        return unknown
    found = available(line for (line,) in lines)
    return list(found) if len(found) == len(paths) else unknown


def available(lines: Iterable[str]) -> list[int]:
    """The free bytes in ``df -Pk``'s answer, path by path."""
    found = (_AVAILABLE.search(f" {line} ") for line in lines)
    return [int(match[1]) * 1024 for match in found if match]


def _size(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
