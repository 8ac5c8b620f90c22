"""Streams under faults: lost answers, cut connections, stopped workers; and their control."""

from __future__ import annotations

import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from fix_span import session
from stream_log import logged
from tidegate.dataplane import source_tables, streams
from tidegate.dataplane.model import SpanOptions, StreamState, TableRule
from tidegate.dataplane.reader import BATCH_CHANGES
from tidegate.engines.postgres import catalog, slots
from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.position import format_lsn, parse_lsn
from tidegate.topology.connections import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_proxy import Proxy
    from fix_span import SpanCase, SpanMaker
    from tidegate.engines.postgres.local import LocalServer

pytestmark = pytest.mark.servers

ITEM = "CREATE TABLE item (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int NOT NULL);"
LOAD = "INSERT INTO item (n) SELECT i FROM generate_series(1, 200) i"


@pytest.fixture
def case(make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer) -> SpanCase:
    return make_span(source_server, [("0", target_server)], ITEM, [TableRule("item")], load=LOAD)


def through(case: SpanCase, *, source: Proxy | None = None, target: Proxy | None = None) -> None:
    """Have the case's workers connect through proxies."""
    spec = case.spec
    if source is not None:
        endpoint = Endpoint(source.conninfo(spec.source.conninfo), spec.source.secret)
        spec = replace(spec, source=endpoint)
    if target is not None:
        (only,) = spec.targets
        endpoint = Endpoint(target.conninfo(only.endpoint.conninfo), only.endpoint.secret)
        spec = replace(spec, targets=(replace(only, endpoint=endpoint),))
    case.spec = spec


def add(case: SpanCase, count: int = 1) -> None:
    for _ in range(count):
        case.at_source.execute("INSERT INTO item (n) VALUES (0)")
        case.at_source.execute("UPDATE item SET n = n + 1 WHERE id % 7 = 0")


def test_a_lost_answer_to_a_commit_applies_nothing_twice(
    case: SpanCase, target_server: LocalServer, make_proxy: Callable[[LocalServer], Proxy]
) -> None:
    """Rule 3: whether it was committed is read back, never guessed."""
    proxy = make_proxy(target_server)
    through(case, target=proxy)
    case.start()
    case.wait_running()
    proxy.lose_commits(3)
    while proxy.lost_commits < 3:
        add(case)
        bound = streams.emit_marker(case.at_source, "lost")
        case.wait(lambda bound=bound: (case.rows()[0].lsn or 0) >= bound)  # type: ignore[misc]
    case.catch_up()
    case.assert_equal()
    messages = [message for message, _ in logged(case.at_targets[0], 1)]
    assert any(message.startswith("retrying:") for message in messages)
    assert case.rows()[0].state is StreamState.RUNNING


def test_cut_connections_are_made_again(
    case: SpanCase,
    source_server: LocalServer,
    target_server: LocalServer,
    make_proxy: Callable[[LocalServer], Proxy],
) -> None:
    to_source, to_target = make_proxy(source_server), make_proxy(target_server)
    through(case, source=to_source, target=to_target)
    case.start()
    case.wait_running()
    for proxy in (to_source, to_target, to_source):
        add(case, 5)
        proxy.cut()
        add(case, 5)
        case.catch_up()
    case.assert_equal()


def test_a_server_that_restarts_is_waited_for(
    make_span: SpanMaker, source_server: LocalServer, special_server: LocalServer
) -> None:
    case = make_span(source_server, [("0", special_server)], ITEM, [TableRule("item")], load=LOAD)
    case.start()
    case.wait_running()
    add(case)
    special_server.kill()
    add(case)
    special_server.start()
    case.at_targets = [session(case.targets[0])]
    case.catch_up()
    case.assert_equal()


@pytest.mark.parametrize("moment", ["copy.chunk.before_commit", "stream.batch.before_commit"])
def test_a_stopped_worker_cannot_commit_after_it_was_replaced(
    make_span: SpanMaker, source_server: LocalServer, target_server: LocalServer, moment: str
) -> None:
    """Rule 17: the old worker is stopped inside its transaction, the new one takes over."""
    case = make_span(
        source_server,
        [("0", target_server)],
        ITEM,
        [TableRule("item")],
        load=LOAD,
        options=SpanOptions(chunk_bytes=2000),
    )
    locker = session(case.targets[0])
    locker.execute("BEGIN")
    if moment.startswith("copy"):
        locker.execute("LOCK TABLE item IN EXCLUSIVE MODE")
        old = case.start()
        waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'item'::regclass"
        case.wait(lambda: case.at_targets[0].execute(waits).fetchone() is not None)
    else:
        old = case.start()
        case.wait_running()
        locker.execute("LOCK TABLE item IN EXCLUSIVE MODE")
        add(case)
        waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'item'::regclass"
        case.wait(lambda: case.at_targets[0].execute(waits).fetchone() is not None)
    old.send_signal(signal.SIGSTOP)
    locker.execute("COMMIT")
    case.spec = replace(case.spec, epoch=1)
    case.start()
    case.wait_running()
    add(case)
    case.catch_up()
    case.assert_equal()
    old.send_signal(signal.SIGCONT)
    assert old.wait(30) == 4
    add(case)
    case.catch_up()
    case.assert_equal()


def test_an_idle_source_is_known_to_be_idle(case: SpanCase) -> None:
    """Positions advance without a write to our tables, and lag stays true."""
    case.start()
    case.wait_running()
    before = case.rows()[0].lsn
    assert before is not None
    with case.source.admin() as other:
        other.execute("CREATE TABLE public.elsewhere AS SELECT generate_series(1, 1000)")
        row = other.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
    assert row is not None
    case.wait(lambda: (case.rows()[0].lsn or 0) >= parse_lsn(row[0]))

    def lag() -> timedelta | None:
        return streams.lag(case.rows()[0], datetime.now(UTC))

    case.wait(lambda: (found := lag()) is not None and found < timedelta(seconds=3))
    heartbeat = case.rows()[0].heartbeat_at
    case.wait(lambda: case.rows()[0].heartbeat_at != heartbeat)

    def confirmed() -> int:
        info = slots.info(case.at_source, case.spec.slot)
        assert info is not None
        return info.confirmed_flush_lsn or 0

    case.wait(lambda: confirmed() > before)


def test_a_held_stream_stays_exactly_where_it_was_told(case: SpanCase) -> None:
    case.start()
    case.wait_running()
    conn, (stream,) = case.at_targets[0], [t.stream_id for t in case.spec.targets]
    streams.hold(conn, [stream], 60)
    add(case, 3)
    with slots.temporary_snapshot(case.spec.source) as exact:
        count = case.at_source.execute("SELECT count(*), sum(n) FROM item").fetchone()
        add(case, 3)
        streams.hold_at(conn, [stream], exact.lsn, 60)
        row = streams.wait_position(conn, stream, exact.lsn, 20)
    assert row.lsn == exact.lsn
    assert conn.execute("SELECT count(*), sum(n) FROM item").fetchone() == count
    streams.hold(conn, [stream], 0.3)
    case.catch_up()
    case.assert_equal()


def test_a_stop_position_stops_for_good_and_nothing_beyond_is_applied(case: SpanCase) -> None:
    process = case.start()
    case.wait_running()
    conn, (stream,) = case.at_targets[0], [t.stream_id for t in case.spec.targets]
    streams.hold(conn, [stream], 60)
    add(case)
    bound = streams.emit_marker(case.at_source, "stop")
    count = case.at_source.execute("SELECT count(*), sum(n) FROM item").fetchone()
    add(case)
    conn.streams.set_stop([stream], bound, None)
    conn.streams.notify(stream)
    assert process.wait(20) == 0
    row = streams.read_stream(conn, stream)
    assert (row.state, row.lsn) == (StreamState.STOPPED, bound)
    assert row.message == f"Stopped at position {format_lsn(bound)}"
    assert conn.execute("SELECT count(*), sum(n) FROM item").fetchone() == count
    streams.start(conn, stream)
    case.start()
    case.catch_up()
    case.assert_equal()


def test_a_transaction_of_any_size_is_applied_whole_and_nothing_after_a_stop(
    case: SpanCase,
) -> None:
    """It arrives in parts; its end may arrive with nothing else, or with what comes after."""
    case.start()
    case.wait_running()
    conn, stream = case.at_targets[0], case.rows()[0].id
    for count in (BATCH_CHANGES, 2 * BATCH_CHANGES, 2 * BATCH_CHANGES + 5):
        streams.hold(conn, [stream], 60)
        case.at_source.execute(
            "INSERT INTO item (n) SELECT i FROM generate_series(1, %s) i", [count]
        )
        bound = streams.emit_marker(case.at_source, "large")
        before = case.at_source.execute("SELECT count(*), sum(n) FROM item").fetchone()
        add(case, 3)
        streams.hold_at(conn, [stream], bound, 60)
        assert streams.wait_position(conn, stream, bound, 60).lsn == bound
        assert conn.execute("SELECT count(*), sum(n) FROM item").fetchone() == before
        streams.release(conn, [stream])
        case.catch_up()
        case.assert_equal()


def test_a_stopped_stream_applies_nothing_and_goes_on_when_started(case: SpanCase) -> None:
    process = case.start()
    case.wait_running()
    conn, (stream,) = case.at_targets[0], [t.stream_id for t in case.spec.targets]
    streams.stop(conn, stream)
    count = conn.execute("SELECT count(*) FROM item").fetchone()
    add(case, 3)
    assert process.wait(20) == 0
    assert conn.execute("SELECT count(*) FROM item").fetchone() == count
    streams.start(conn, stream)
    case.start()
    case.catch_up()
    case.assert_equal()


@pytest.mark.parametrize(
    "ddl",
    [
        "ALTER TABLE item ADD extra int",
        "ALTER TABLE item ALTER n TYPE bigint",
        "ALTER TABLE item ALTER n TYPE int USING n * 100",
        "ALTER TABLE item DROP n",
    ],
)
@pytest.mark.parametrize("written", [True, False])
def test_an_altered_table_stops_the_stream(case: SpanCase, ddl: str, written: bool) -> None:
    """Rule 13, with and without a row written after the change."""
    process = case.start()
    case.wait_running()
    add(case)
    case.at_source.execute(ddl)
    if written:
        case.at_source.execute(
            "INSERT INTO item DEFAULT VALUES"
            if "DROP" in ddl
            else "INSERT INTO item (n) VALUES (1)"
        )
    assert process.wait(30) == 3
    (row,) = case.rows()
    assert row.state is StreamState.STOPPED
    assert row.message.startswith("Stopped at DDL: table item was")


def test_truncate_vacuum_and_statistics_do_not_stop_the_stream(case: SpanCase) -> None:
    case.start()
    case.wait_running()
    for statement in ("TRUNCATE item", "VACUUM FULL item", "ANALYZE item"):
        case.at_source.execute(statement)
    add(case)
    beat = [case.rows()[0].heartbeat_at]
    observed = case.output().count('"progress"')
    case.wait(lambda: case.output().count('"progress"') > observed + 7)
    assert case.rows()[0].heartbeat_at != beat[0]
    case.catch_up()
    case.assert_equal()


def test_an_altered_table_is_accepted_by_starting_again(case: SpanCase) -> None:
    process = case.start()
    case.wait_running()
    case.at_source.execute("ALTER TABLE item ADD extra int")
    add(case)
    assert process.wait(30) == 3
    case.at_targets[0].execute("ALTER TABLE item ADD extra int")
    streams.start(case.at_targets[0], case.rows()[0].id)
    case.start()
    case.catch_up()
    case.assert_equal()


def test_a_row_that_is_missing_is_named(case: SpanCase) -> None:
    """Rule 11."""
    process = case.start()
    case.wait_running()
    case.at_targets[0].execute("DELETE FROM item WHERE id = 42")
    case.at_source.execute("UPDATE item SET n = 0 WHERE id IN (41, 42)")
    assert process.wait(30) == 3
    (row,) = case.rows()
    assert row.state is StreamState.ERROR
    assert "keys not there: 42" in row.message


def test_the_log_kept_for_a_stream_does_not_fill_the_source(
    make_span: SpanMaker, special_server: LocalServer, target_server: LocalServer
) -> None:
    case = make_span(special_server, [("0", target_server)], ITEM, [TableRule("item")], load=LOAD)
    case.at_source.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '64MB'")
    case.at_source.execute("SELECT pg_reload_conf()")
    try:
        process = case.start()
        case.wait_running()
        streams.hold(case.at_targets[0], [case.rows()[0].id], 300)
        for _ in range(3):
            case.at_source.execute(
                "CREATE TABLE filler AS SELECT repeat(md5(i::text), 30) FROM"
                " generate_series(1, 15000) i"
            )
            case.at_source.execute("DROP TABLE filler")
        assert process.wait(40) == 3
        (row,) = case.rows()
        assert row.state is StreamState.ERROR
        assert "max_slot_wal_keep_size" in row.message
    finally:
        case.at_source.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
        case.at_source.execute("SELECT pg_reload_conf()")


def test_an_alter_between_two_queries_is_seen_as_a_whole_or_not_at_all(
    case: SpanCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 13: half a rewrite, taken for harmless and remembered, would hide the other half."""
    with connect(case.spec.source, purpose="test") as source:
        before = source_tables.observe(source, case.spec)
        read_tables = catalog.read_tables

        def altered_meanwhile(*arguments: Any) -> Any:
            found = read_tables(*arguments)
            case.at_source.execute("ALTER TABLE item ALTER n TYPE int USING n * 100")
            return found

        with monkeypatch.context() as patched:
            patched.setattr(source_tables, "read_tables", altered_meanwhile)
            during = source_tables.observe(source, case.spec)
        after = source_tables.observe(source, case.spec)
    assert not source_tables.differs(before, during)
    assert source_tables.altered(during, after) == ["table item was rewritten by ALTER TABLE"]


def test_a_worker_outlives_events_that_it_cannot_write(case: SpanCase) -> None:
    """Situation 23: the disk that its reports go to is full; rows and positions are not there."""
    case.log.unlink()
    case.log.symlink_to("/dev/full")
    process = case.start()
    case.wait_running()
    add(case)
    case.catch_up()
    case.assert_equal()
    process.terminate()
    assert process.wait(30) == 143
