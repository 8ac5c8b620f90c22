"""The statements by which a worker's transactions read and move a stream's row.

Every transaction that applies rows begins with the span's origin message (datapath rule 15) and
the row under FOR UPDATE with its epoch (rule 17): one writer, and whoever stops the stream waits
for one transaction at most. The position moves in the transaction that moves the rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg.types.json import Jsonb

from tidegate.engines.postgres.position import format_lsn, parse_lsn
from tidegate.engines.seam import Control

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import psycopg

_CONTROL = (
    "epoch, state, message, lsn::text, h_lsn::text, stop_lsn::text, hold_until IS NOT NULL,"
    " coalesce(hold_until > clock_timestamp(), false), accounts"
)


def _control(row: Sequence[Any]) -> Control:
    """From the columns of ``_CONTROL``; a hold that has run out is no stop any more."""
    epoch, state, message, lsn, h_lsn, stop_lsn, was_held, holding, accounts = row
    if was_held and not holding:
        stop_lsn = None
    lsns = (_int(lsn), _int(h_lsn), _int(stop_lsn))
    return Control(epoch, state, message, *lsns, holding, accounts)


def _int(lsn: str | None) -> int | None:
    return None if lsn is None else parse_lsn(lsn)


def read(conn: psycopg.Connection, stream_id: int, *, lock: bool = False) -> Control | None:
    """The row, locked for the rest of the transaction if wanted; ``None`` when it is gone."""
    row = conn.execute(
        f"SELECT {_CONTROL} FROM _tidegate.stream WHERE id = %s"  # noqa: S608 - constant columns
        + (" FOR UPDATE" if lock else ""),
        [stream_id],
    ).fetchone()
    return None if row is None else _control(row)


def begin(
    conn: psycopg.Connection, stream_id: int, origin: str, *, group: str = "", alone: bool = False
) -> Control | None:
    """Begin a transaction that applies rows; the row is locked.

    Args:
        conn: in autocommit.
        stream_id: the stream.
        origin: what marks the transaction in the log.
        group: whose transactions run side by side, but for one that runs ``alone``: it waits for
            those under way, and those that begin later wait for it.
        alone: whether this one does.
    """
    conn.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
    turn, values = "", [origin]
    if group:
        lock = "pg_advisory_xact_lock" if alone else "pg_advisory_xact_lock_shared"
        turn, values = f"{lock}(hashtextextended('tidegate apply ' || %s, 0)), ", [group, origin]
    conn.execute(f"SELECT {turn}pg_logical_emit_message(true, 'tidegate', %s)", values)
    return read(conn, stream_id, lock=True)


def applied(
    conn: psycopg.Connection,
    stream_id: int,
    *,
    lsn: int,
    rows: int,
    h_lsn: int,
    source_commit_at: datetime | None,
    accounts: dict[str, tuple[int, int]] | None,
) -> None:
    """Move the position, in the transaction that brought the rows; None: accounts stay."""
    conn.execute(
        "UPDATE _tidegate.stream SET lsn = greatest(lsn, %s), rows_applied = rows_applied + %s,"
        " source_commit_at = coalesce(%s, source_commit_at), h_lsn = %s,"
        " accounts = coalesce(%s, accounts),"
        " message = CASE WHEN message LIKE 'retrying:%%' THEN '' ELSE message END,"
        " updated_at = now(), heartbeat_at = now() WHERE id = %s",
        [
            format_lsn(lsn),
            rows,
            source_commit_at,
            format_lsn(h_lsn),
            _json(accounts),
            stream_id,
        ],
    )


def _json(accounts: dict[str, tuple[int, int]] | None) -> Jsonb | None:
    return None if accounts is None else Jsonb(accounts)


def held_at(conn: psycopg.Connection, stream_ids: Sequence[int]) -> datetime | None:
    """The server's time while each of the streams is held; None once a hold has run out."""
    row = conn.execute(
        "SELECT clock_timestamp(), coalesce(min(hold_until) > clock_timestamp(), false)"
        " FROM _tidegate.stream WHERE id = ANY(%s) HAVING count(hold_until) = %s",
        [list(stream_ids), len(stream_ids)],
    ).fetchone()
    return row[0] if row is not None and row[1] else None


def advance(
    conn: psycopg.Connection,
    stream_id: int,
    epoch: int,
    *,
    lsn: int,
    h_lsn: int,
    heard: bool,
    accounts: dict[str, tuple[int, int]] | None,
) -> Control | None:
    """Move the position of a stream that had nothing to apply up to ``lsn``; None: accounts stay.

    ``heard``: the stream has caught up with its source as it was a moment ago; the heartbeat says
    so. Returns the row as it is then, or ``None`` when it is not this worker's any more.
    """
    row = conn.execute(
        "UPDATE _tidegate.stream SET lsn = greatest(lsn, %s), h_lsn = %s,"  # noqa: S608 - constant columns
        " heartbeat_at = CASE WHEN %s THEN clock_timestamp() ELSE heartbeat_at END,"
        " accounts = coalesce(%s, accounts),"
        " message = CASE WHEN message LIKE 'retrying:%%' THEN '' ELSE message END"
        f" WHERE id = %s AND epoch = %s RETURNING {_CONTROL}",
        [format_lsn(lsn), format_lsn(h_lsn), heard, _json(accounts), stream_id, epoch],
    ).fetchone()
    return None if row is None else _control(row)


def set_h(
    conn: psycopg.Connection,
    stream_id: int,
    h_lsn: int,
    accounts: dict[str, tuple[int, int]] | None = None,
) -> None:
    """Set H, in a transaction that holds the row; None: accounts stay."""
    conn.execute(
        "UPDATE _tidegate.stream SET h_lsn = %s, accounts = coalesce(%s, accounts) WHERE id = %s",
        [format_lsn(h_lsn), _json(accounts), stream_id],
    )
