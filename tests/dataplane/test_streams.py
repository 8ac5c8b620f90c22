"""Control of streams through their rows, on a real server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import psycopg
import pytest

from stream_log import logged
from tidegate.dataplane import streams
from tidegate.dataplane.model import Direction, StreamState
from tidegate.dataplane.stream_states import RESUMED
from tidegate.engines.postgres.position import Position, format_lsn
from tidegate.engines.postgres.session import PostgresSession
from tidegate.engines.postgres.sidecar import installation as sidecar
from tidegate.engines.seam import StreamFacts
from tidegate.errors import (
    AlreadyExistsError,
    EpochLostError,
    FailedPreconditionError,
    NotFoundError,
    WaitTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tidegate.engines.postgres.local import LocalServer

pytestmark = pytest.mark.servers

type Connect = Callable[[], PostgresSession]


@pytest.fixture
def connect(
    target_server: LocalServer, new_database: Callable[[LocalServer], str]
) -> Iterator[Connect]:
    name = new_database(target_server)
    opened: list[PostgresSession] = []

    def make() -> PostgresSession:
        connection = PostgresSession.connect(
            target_server.conninfo(name),
            password=target_server.password,
            autocommit=True,
            application_name="tidegate/test",
        )
        opened.append(connection)
        return connection

    yield make
    for connection in opened:
        connection.close()


@pytest.fixture
def conn(connect: Connect) -> PostgresSession:
    connection = connect()
    sidecar.install(connection)
    return connection


def insert(
    conn: PostgresSession,
    shard: str = "0",
    uuid: str | None = None,
    position: Position | None = None,
) -> int:
    return streams.insert_stream(
        conn,
        StreamFacts(
            workflow_uuid=uuid or str(uuid4()),
            workflow="move",
            direction=Direction.FORWARD,
            source_keyspace="shop",
            source_shard=shard,
            target_keyspace="orders",
            target_shard="0",
            state=StreamState.INIT,
        ),
        position,
    )


def test_installing_twice_changes_nothing_and_removal_spares_what_is_used(
    conn: PostgresSession,
) -> None:
    uuid = str(uuid4())
    insert(conn, uuid=uuid)
    sidecar.install(conn)
    assert not sidecar.remove_if_unused(conn)
    assert streams.delete_streams(conn, uuid, Direction.FORWARD) == 1
    assert sidecar.remove_if_unused(conn)
    assert sidecar.remove_if_unused(conn)
    assert not sidecar.is_installed(conn)


def test_a_stream_is_read_back_as_inserted(conn: PostgresSession) -> None:
    uuid = str(uuid4())
    stream = insert(conn, uuid=uuid, position=Position("7", 1, 0x1_0000_00A8))
    row = streams.read_stream(conn, stream)
    assert (row.lsn, row.h_lsn, row.exact) == (0x1_0000_00A8, 0x1_0000_00A8, True)
    assert (row.state, row.epoch, row.backends) == (StreamState.INIT, 0, ())
    assert streams.read_streams(conn, uuid) == [row]
    with pytest.raises(AlreadyExistsError):
        insert(conn, uuid=uuid)
    with pytest.raises(NotFoundError):
        streams.stop(conn, stream + 1)


def test_a_frozen_stream_does_not_start(conn: PostgresSession) -> None:
    stream = insert(conn)
    assert streams.start(conn, stream).state is StreamState.COPYING
    assert streams.freeze(conn, stream).frozen
    with pytest.raises(FailedPreconditionError):
        streams.start(conn, stream)
    streams.stop(conn, stream, "Switched back")
    assert streams.start(conn, stream).active


def test_a_worker_that_goes_on_to_the_log_does_not_undo_a_stop(conn: PostgresSession) -> None:
    stream = insert(conn)
    streams.stop(conn, stream, "Stopped by request")
    row = streams.move(conn, stream, RESUMED)
    assert (row.state, row.message) == (StreamState.STOPPED, "Stopped by request")
    assert logged(conn, stream) == [("Stopped by request", 1)]


def test_a_repeated_message_is_counted(conn: PostgresSession) -> None:
    stream = insert(conn)
    for _ in range(3):
        conn.streams.log(stream, "Running", "connection refused")
    conn.streams.log(stream, "Running", "other")
    assert logged(conn, stream) == [
        ("connection refused", 3),
        ("other", 1),
    ]


def test_holds_are_set_and_released_and_starting_forgets_a_reached_stop(
    conn: PostgresSession,
) -> None:
    stream = insert(conn, position=Position("7", 1, 100))
    streams.hold_at(conn, [stream], 200, 60)
    row = streams.read_stream(conn, stream)
    assert row.stop_lsn == 200
    assert row.hold_until is not None
    streams.release(conn, [stream])
    conn.streams.set_stop([stream], 100, None)
    row = streams.read_stream(conn, stream)
    assert (row.stop_lsn, row.hold_until) == (100, None)
    assert streams.start(conn, stream).stop_lsn is None


def test_waiting_for_a_position_ends_in_time_and_tells_why(conn: PostgresSession) -> None:
    stream = insert(conn)
    with pytest.raises(WaitTimeoutError, match="has not begun"):
        streams.wait_position(conn, stream, 5, 0.05)
    conn.execute("UPDATE _tidegate.stream SET lsn = %s", [format_lsn(5)])
    with pytest.raises(WaitTimeoutError, match="is copying"):
        streams.wait_position(conn, stream, 5, 0.05)
    conn.execute("UPDATE _tidegate.stream SET h_lsn = %s", [format_lsn(5)])
    assert streams.wait_position(conn, stream, 5, 0.05).lsn == 5
    streams.stop(conn, stream)
    with pytest.raises(FailedPreconditionError, match="cannot reach 0/6"):
        streams.wait_position(conn, stream, 6, 5)


def test_a_take_over_ends_a_worker_that_holds_the_row(
    conn: PostgresSession, connect: Connect
) -> None:
    """Rule 17: a stopped worker inside its transaction cannot keep the row."""
    stream = insert(conn)
    worker = connect()
    streams.record_backend(worker, stream, 0)
    worker.execute("BEGIN")
    worker.execute("SELECT FROM _tidegate.stream WHERE id = %s FOR UPDATE", [stream])
    row = streams.take_over(conn, stream, 1, timeout_s=10)
    assert (row.epoch, row.backends) == (1, ())
    with pytest.raises(psycopg.OperationalError):
        worker.execute("COMMIT")
    with pytest.raises(EpochLostError):
        streams.take_over(conn, stream, 1, timeout_s=10)
    with pytest.raises(EpochLostError):
        streams.record_backend(connect(), stream, 0)


def test_a_take_over_does_not_end_strangers(conn: PostgresSession, connect: Connect) -> None:
    stream = insert(conn)
    stranger = connect()
    stranger.execute("BEGIN")
    stranger.execute("SELECT FROM _tidegate.stream WHERE id = %s FOR UPDATE", [stream])
    with pytest.raises(WaitTimeoutError):
        streams.take_over(conn, stream, 1, timeout_s=0.5)
    stranger.execute("COMMIT")


def test_a_marker_lies_above_everything_committed_before(conn: PostgresSession) -> None:
    before = conn.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
    first = streams.emit_marker(conn, "one")
    second = streams.emit_marker(conn, "two")
    assert before is not None
    assert first < second
    flushed = conn.execute(
        "SELECT pg_current_wal_flush_lsn() >= %s::pg_lsn", [format_lsn(second)]
    ).fetchone()
    assert flushed == (True,)


def test_lag_is_unknown_while_copying_and_true_on_an_idle_source(conn: PostgresSession) -> None:
    stream = insert(conn, position=Position("7", 1, 100))
    now = datetime.now(UTC)
    assert streams.lag(streams.read_stream(conn, stream), now) is None
    conn.execute(
        "UPDATE _tidegate.stream SET state = 'Running',"
        " source_commit_at = %(now)s - interval '9 s',"
        " updated_at = %(now)s - interval '8 s', heartbeat_at = %(now)s - interval '8 s'",
        {"now": now},
    )
    assert streams.lag(streams.read_stream(conn, stream), now) == timedelta(seconds=9)
    conn.execute("UPDATE _tidegate.stream SET heartbeat_at = %s - interval '1 s'", [now])
    assert streams.lag(streams.read_stream(conn, stream), now) == timedelta(seconds=1)
