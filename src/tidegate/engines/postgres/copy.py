"""How rows of a table leave one PostgreSQL server and enter another: COPY, undecoded.

Decides the wire format of a table (binary where both sides provably mean the same bytes, else
text), the statements, and how blocks are read through libpq. Rows are passed on as they came.
Without encryption :mod:`tidegate.engines.postgres.passing` reads them past libpq, in half the time.

It never interprets a value; :mod:`tidegate.engines.postgres.split` looks at sharding columns. Rules
22 (explicit columns, no generated ones, text where a type cannot travel in binary) and 17 (the
stream's row, locked with its epoch) of ``docs/internals/datapath.md`` are kept here.
"""

from __future__ import annotations

import select
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import psycopg
from psycopg import pq, sql

from tidegate.engines.postgres.bounds import regclass_text, table_identifier
from tidegate.engines.postgres.connection import begin_reading
from tidegate.engines.postgres.position import parse_lsn
from tidegate.errors import CancelledError, CopyError, EpochLostError

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Iterator, Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.topology.names import TableName

type Format = Literal["binary", "text"]

BLOCK_BYTES = 64 * 1024
"""Messages are joined to blocks of about this size before they are written."""

POLL_S = 0.5
"""How often a wait for the server looks whether it should end."""

BINARY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
BINARY_TRAILER = b"\xff\xff"

#: Types that never travel in binary: object names become numbers, XML is rewritten in transit, and
#: no server takes an empty vector in the form in which it sends one.
_TEXT_ONLY = [
    *("regclass", "regcollation", "regconfig", "regdictionary", "regnamespace", "regoper"),
    *("regoperator", "regproc", "regprocedure", "regrole", "regtype", "regdatabase"),
    *("int2vector", "oidvector"),
    "xml",
]

_COLUMNS = """
WITH RECURSIVE typed AS (
  SELECT a.attnum, a.attname::text AS name, format_type(a.atttypid, a.atttypmod) AS type_name,
         a.attgenerated <> '' AS generated, a.atttypid AS oid
    FROM pg_attribute a
   WHERE a.attrelid = %(table)s::regclass AND a.attnum > 0 AND NOT a.attisdropped
), base AS (
  SELECT c.attnum, t.oid, t.typtype, t.typbasetype, t.typelem, t.typsend, t.typname::text,
         t.typcategory, t.typsubscript
    FROM typed c JOIN pg_type t ON t.oid = c.oid
  UNION ALL
  SELECT b.attnum, t.oid, t.typtype, t.typbasetype, t.typelem, t.typsend, t.typname::text,
         t.typcategory, t.typsubscript
    FROM base b JOIN pg_type t ON t.oid = b.typbasetype
   WHERE b.typtype = 'd'
)
SELECT c.name, c.type_name, c.generated, CASE WHEN b.oid < 16384 THEN b.typname ELSE '' END,
       CASE
         WHEN b.typsend = 0 THEN false
         WHEN b.typtype = 'e' THEN true
         WHEN b.oid >= 16384 OR b.typtype = 'c' THEN false
         WHEN b.typsubscript = 'array_subscript_handler'::regproc
           THEN (SELECT e.oid < 16384 AND e.typsend <> 0 AND e.typname <> ALL (%(text_only)s)
                   FROM pg_type e WHERE e.oid = b.typelem)
         ELSE b.typname <> ALL (%(text_only)s)
       END
  FROM typed c JOIN base b ON b.attnum = c.attnum AND b.typtype <> 'd'
 ORDER BY c.attnum
"""


@dataclass(frozen=True)
class ColumnForm:
    """What decides how a column travels; ``base_type`` is the built-in type under its domains."""

    name: str
    type_name: str
    generated: bool
    base_type: str
    binary: bool


def column_forms(connection: Connection[TupleRow], table: TableName) -> tuple[ColumnForm, ...]:
    """The live columns of a table, generated ones included."""
    rows = connection.execute(
        _COLUMNS, {"table": regclass_text(connection, table), "text_only": _TEXT_ONLY}
    )
    return tuple(ColumnForm(*row) for row in rows)


@dataclass(frozen=True)
class CopyPlan:
    """How one table travels: in which format, and which columns in which order."""

    table: TableName
    columns: tuple[str, ...]
    as_text: frozenset[str]
    format: Format
    into: sql.Identifier | None = None  # another table of the target, with columns of other names
    into_columns: tuple[str, ...] = ()

    def options(self) -> sql.Composable:
        """The options both COPY statements share."""
        return sql.SQL("(FORMAT {})").format(sql.SQL(self.format))

    def names(self) -> sql.Composable:
        """The columns, quoted."""
        return sql.SQL(", ").join(map(sql.Identifier, self.columns))

    def select_list(self) -> sql.Composable:
        """The columns as the source sends them."""
        return sql.SQL(", ").join(
            sql.SQL("{}::text").format(sql.Identifier(name))
            if name in self.as_text
            else sql.Identifier(name)
            for name in self.columns
        )

    def copy_in(self) -> sql.Composed:
        """The statement for the target."""
        columns = sql.SQL(", ").join(map(sql.Identifier, self.into_columns or self.columns))
        return sql.SQL("COPY {} ({}) FROM STDIN {}").format(
            self.into or table_identifier(self.table), columns, self.options()
        )

    def copy_out(
        self, condition: sql.Composable, *, first: sql.Composable | None = None
    ) -> sql.Composed:
        """The statement for the source; ``first`` is an expression put before the columns."""
        columns = self.select_list()
        if first is not None:
            columns = sql.SQL(", ").join([first, columns])
        return sql.SQL("COPY (SELECT {} FROM ONLY {} WHERE {}) TO STDOUT {}").format(
            columns, table_identifier(self.table), condition, self.options()
        )


def plan_copy(
    table: TableName,
    source: Sequence[ColumnForm],
    targets: Iterable[Sequence[ColumnForm]],
    *,
    first: Sequence[str] = (),
) -> CopyPlan:
    """Decide how a table travels to all of its targets.

    Args:
        table: the table.
        source: its columns there.
        targets: its columns at each target.
        first: columns to send before the others, so that they lie at the start of each row.

    Raises:
        CopyError: a target lacks a column, or computes one that the source stores.
    """
    travelling = [c for c in source if not c.generated]
    binary = all(c.binary for c in travelling)
    for target in targets:
        there = {c.name: c for c in target}
        for column in travelling:
            match = there.get(column.name)
            if match is None or match.generated:
                raise CopyError(
                    f"column {column.name} of table {table} cannot be filled at the target",
                    next_step="give the table the same columns on both sides",
                )
            binary = binary and match.binary and match.type_name == column.type_name
    names = [c.name for c in travelling]
    ordered = (*first, *(name for name in names if name not in first))
    assert set(ordered) == set(names), "columns sent first are columns of the table"
    as_text = frozenset(c.name for c in travelling if c.base_type == "xml")
    return CopyPlan(table, ordered, as_text, "binary" if binary else "text")


def begin_snapshot(connection: Connection[TupleRow]) -> int:
    """Open a read-only snapshot; returns a log position at or after everything visible in it."""
    begin_reading(connection)
    row = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
    assert row is not None
    return parse_lsn(row[0])


def read_messages(
    connection: Connection[TupleRow], query: sql.Composable, stop: threading.Event
) -> Iterator[list[memoryview]]:
    """Run COPY TO and yield its CopyData messages, as many at a time as fill a block.

    For sessions that :mod:`tidegate.engines.postgres.passing` cannot take. Works below psycopg's
    ``Copy``: one call a message and none of its waiting machinery while messages are at hand. The
    session must be closed if the iteration is left early.

    Raises:
        CancelledError: ``stop`` was set.
        psycopg.Error: what the server says.
    """
    wire = connection.pgconn
    started = wire.exec_(query.as_bytes(connection))
    if started.status != pq.ExecStatus.COPY_OUT:
        raise psycopg.errors.error_from_result(started)
    poller = select.poll()
    poller.register(wire.socket, select.POLLIN)
    take = wire.get_copy_data
    messages: list[memoryview] = []
    size = 0
    while True:
        count, data = take(1)
        if count > 0:
            messages.append(data)
            size += count
            if size >= BLOCK_BYTES:
                yield messages
                messages, size = [], 0
        elif count == 0:
            while not poller.poll(POLL_S * 1000) and not stop.is_set():
                pass
            if stop.is_set():
                raise CancelledError(
                    "the copy was asked to stop", next_step="start the workflow again"
                )
            wire.consume_input()
        else:
            break
    if messages:
        yield messages
    _end_copy(connection)


def _end_copy(connection: Connection[TupleRow]) -> None:
    while (result := connection.pgconn.get_result()) is not None:
        if result.status != pq.ExecStatus.COMMAND_OK:
            raise psycopg.errors.error_from_result(result)


#: The check without a lock, before anything is written: a worker that was replaced stops here.
_STREAM = sql.SQL("SELECT state FROM _tidegate.stream WHERE id = %s AND epoch = %s")

#: The check that counts, after the rows and before COMMIT.
_STREAM_LOCKED = sql.SQL("{} FOR SHARE").format(_STREAM)

#: States in which a stream may copy.
COPYING_STATES = ("Init", "Copying", "Running")


def check_stream(
    connection: Connection[TupleRow], stream_id: int, epoch: int, *, lock: bool
) -> None:
    """Make sure that this worker still owns the stream and that the stream is to run.

    With ``lock`` the row is held FOR SHARE until the transaction ends: whoever raises the epoch or
    stops the stream waits for this commit or makes it fail, never slips in between. The lock is
    taken *after* the rows, so that it is held for milliseconds: chunk transactions overlap all the
    time, and with locks of their whole length an update of the row would never get its turn.

    Raises:
        EpochLostError: the row has a newer epoch, or is gone.
        CancelledError: the stream was stopped.
    """
    query = _STREAM_LOCKED if lock else _STREAM
    row = connection.execute(query, [stream_id, epoch]).fetchone()
    if row is None:
        raise EpochLostError(
            f"stream {stream_id} is no longer held under epoch {epoch}",
            next_step="nothing: the worker that replaced this one goes on",
        )
    if row[0] not in COPYING_STATES:
        raise CancelledError(
            f"stream {stream_id} is {row[0]}", next_step="start the workflow to go on"
        )


def begin_target(
    connection: Connection[TupleRow],
    origin: str,
    stream_id: int,
    epoch: int,
    *,
    durable_at_once: bool = True,
) -> None:
    """Begin a transaction that writes rows: origin message first (rule 15), then the epoch.

    Without ``durable_at_once`` its COMMIT may be lost with the server, whole, as long as no later
    durable one has been answered.
    """
    connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
    if not durable_at_once:
        connection.execute("SET LOCAL synchronous_commit = off")
    connection.execute("SELECT pg_logical_emit_message(true, 'tidegate', %s)", [origin])
    check_stream(connection, stream_id, epoch, lock=False)


def prepare_target(connection: Connection[TupleRow]) -> bool:
    """Keep triggers and foreign keys of the target from firing; False where that is not allowed."""
    try:
        connection.execute("SET session_replication_role = replica")
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True
