"""Frames pass from one server to another past libpq, whole or not at all."""

from __future__ import annotations

import struct
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from fix_databases import Worker, wait_until
from tidegate.engines.postgres import copy, passing
from tidegate.engines.postgres.connection import connect
from tidegate.errors import CancelledError
from tidegate.topology.connections import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from fix_copy import World
    from fix_databases import Database
    from fix_proxy import Proxy
    from fix_tls import TlsFront
    from tidegate.engines.postgres.local import LocalServer

pytestmark = pytest.mark.servers

NEVER = threading.Event()
BINARY = "TO STDOUT (FORMAT binary)"
INTO = sql.SQL("COPY public.t FROM STDIN (FORMAT binary)")


def frame(payload: bytes, kind: bytes = b"d") -> bytes:
    return kind + struct.pack("!I", len(payload) + 4) + payload


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(1, 60)), max_size=12),
    st.binary(max_size=3),
    st.sampled_from([b"", b"c\0\0\0\4", b"d\0\0", frame(b"x" * 50)[:-7]]),
)
def test_frames_are_found_in_runs_and_out_of_them(
    lengths: list[tuple[int, int]], before: bytes, after: bytes
) -> None:
    frames = [frame(b"d" * length) for length, times in lengths for _ in range(times)]
    buffer = bytearray(before + b"".join(frames) + after)
    starts: list[int] = []
    at = passing.frames_end(buffer, len(before), len(buffer), starts)
    expected, position = [], len(before)
    for one in frames:
        expected.append(position)
        position += len(one)
    incomplete = after[:1] == b"d" and len(after) >= 5
    assert starts == expected + [position] * incomplete
    assert at == position + (55 if incomplete else 0)


@contextmanager
def reading(database: Database) -> Iterator[Connection[TupleRow]]:
    with connect(database.endpoint, purpose="test") as session:
        session.execute("BEGIN")
        yield session


SELECTS = [
    "SELECT FROM generate_series(1, 0)",
    "SELECT NULL::int, NULL::text FROM generate_series(1, 3)",
    "SELECT g, repeat('x', 100) FROM generate_series(1, 5000) g",
    "SELECT g, repeat('x', mod(g * 7919, 300)) FROM generate_series(1, 5000) g",
    "SELECT repeat('y', 300000) UNION ALL SELECT 'z' UNION ALL SELECT repeat('z', 1000000)",
]


@pytest.mark.parametrize("buffer_bytes", [5, 64, 257, passing.BUFFER_BYTES])
@pytest.mark.parametrize("select", SELECTS)
def test_what_passes_is_what_libpq_reads(
    make_world: Callable[..., World], select: str, buffer_bytes: int
) -> None:
    with reading(make_world().source) as session:
        query = sql.SQL(f"COPY ({select}) {BINARY}")
        known = [bytes(m) for got in copy.read_messages(session, query, NEVER) for m in got]
        size = {"buffer_bytes": buffer_bytes}
        found = [m for got in passing.messages(session, query, NEVER, **size) for m in got]
        assert found == known
        passed = b"".join(bytes(p) for p in passing.pieces(session, query, NEVER, **size))
        assert passed == b"".join(map(frame, known))
        assert session.execute("SELECT 42").fetchone() == (42,)


def move(source: Database, target: Database, select: str) -> int:
    """The rows of a query into table t, one transaction."""
    query = sql.SQL(f"COPY ({select}) {BINARY}")
    with reading(source) as reader, reading(target) as writer:
        with (
            passing.CopyIn(writer, INTO, NEVER) as into,
            closing(passing.pieces(reader, query, NEVER)) as found,
        ):
            for piece in found:
                into.pass_on(piece)
        writer.execute("COMMIT")
        return into.rowcount


def test_a_value_of_a_hundred_megabytes_passes(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.everywhere("CREATE TABLE t (value text)")
    select = "SELECT repeat(md5('x'), 3300000) UNION ALL SELECT NULL"
    assert move(world.source, world.targets[0], select) == 2
    here = world.rows(world.targets[0], "SELECT md5(value), length(value) FROM t ORDER BY 2")
    there = world.rows(
        world.source, "SELECT md5(v), length(v) FROM (SELECT repeat(md5('x'), 3300000) AS v) AS x"
    )
    assert here == [*there, (None, None)]


def test_an_error_of_the_source_keeps_its_state_and_its_words(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    world.everywhere("CREATE TABLE t (id int)")
    with pytest.raises(psycopg.errors.DivisionByZero, match="division by zero") as failed:
        move(
            world.source,
            world.targets[0],
            "SELECT 1 / (g - 90000) FROM generate_series(1, 99999) g",
        )
    assert failed.value.sqlstate == "22012"
    assert failed.value.diag.severity == "ERROR"
    assert world.rows(world.targets[0], "SELECT count(*) FROM t") == [(0,)]


def test_an_error_of_the_target_keeps_its_state_and_its_constraint(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    world.everywhere("CREATE TABLE t (id int PRIMARY KEY, more text)")
    select = "SELECT mod(g, 90000), repeat('x', 100) FROM generate_series(1, 99999) g"
    with pytest.raises(psycopg.errors.UniqueViolation, match=r"DETAIL:  Key \(id\)") as failed:
        move(world.source, world.targets[0], select)
    assert failed.value.diag.constraint_name == "t_pkey"
    assert world.rows(world.targets[0], "SELECT count(*) FROM t") == [(0,)]


def test_a_refused_statement_is_an_error_and_closes_the_session(
    make_world: Callable[..., World],
) -> None:
    with reading(make_world().source) as session:
        with pytest.raises(psycopg.errors.UndefinedTable):
            list(passing.pieces(session, sql.SQL("COPY public.nothing TO STDOUT"), NEVER))
        assert session.closed


def test_notices_among_the_rows_are_passed_over(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.everywhere("CREATE TABLE t (id int)")
    world.run(
        world.source,
        "CREATE FUNCTION public.loud(n int) RETURNS int LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE WARNING 'row %', n; RETURN n; END $$",
    )
    select = "SELECT public.loud(g) FROM generate_series(1, 3000) g"
    assert move(world.source, world.targets[0], select) == 3000
    assert world.rows(world.targets[0], "SELECT count(*), sum(id) FROM t") == [(3000, 4501500)]


SLOW = "SELECT g, pg_sleep(0.001)::text FROM generate_series(1, 60000) g"


def under_way(database: Database, what: str) -> bool:
    with database.admin() as connection:
        found = connection.execute(
            "SELECT FROM pg_stat_activity WHERE query LIKE %s AND datname = current_database()"
            " AND state = 'active' AND pid <> pg_backend_pid()",
            [what],
        ).fetchone()
    return found is not None


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_terminated_backend_ends_the_transfer(
    make_world: Callable[..., World], side: str
) -> None:
    world = make_world()
    world.everywhere("CREATE TABLE t (id int, more text)")
    worker = Worker(lambda: move(world.source, world.targets[0], SLOW))
    database = world.source if side == "source" else world.targets[0]
    wait_until(lambda: under_way(world.targets[0], "COPY%") and under_way(world.source, "COPY%"))
    world.run(
        database,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE query LIKE 'COPY%' AND datname = current_database()",
    )
    with pytest.raises(psycopg.OperationalError):
        worker.result()
    assert world.rows(world.targets[0], "SELECT count(*) FROM t") == [(0,)]


def test_a_cut_connection_ends_the_transfer(
    make_world: Callable[..., World],
    make_proxy: Callable[[LocalServer], Proxy],
    source_server: LocalServer,
) -> None:
    world = make_world()
    proxy = make_proxy(source_server)
    endpoint = world.source.endpoint
    there = Endpoint(proxy.conninfo(endpoint.conninfo), endpoint.secret)
    with connect(there, purpose="test") as session:
        session.execute("BEGIN")
        got = passing.pieces(session, sql.SQL(f"COPY ({SLOW}) {BINARY}"), NEVER)
        next(got)
        proxy.cut()
        with pytest.raises(psycopg.OperationalError):
            list(got)
        assert session.closed


def test_a_transfer_that_is_to_stop_stops_while_it_waits(
    make_world: Callable[..., World],
) -> None:
    stop = threading.Event()
    with reading(make_world().source) as session:
        query = sql.SQL(f"COPY (SELECT pg_sleep(60)::text) {BINARY}")
        worker = Worker(lambda: list(passing.pieces(session, query, stop)))
        stop.set()
        with pytest.raises(CancelledError):
            worker.result(10)
        assert session.closed


def test_encrypted_sessions_go_through_libpq(
    make_world: Callable[..., World],
    make_tls: Callable[[LocalServer], TlsFront],
    source_server: LocalServer,
) -> None:
    endpoint = make_world().source.endpoint
    there = Endpoint(make_tls(source_server).conninfo(endpoint.conninfo), endpoint.secret)
    with connect(endpoint, purpose="test") as plain, connect(there, purpose="test") as encrypted:
        assert passing.is_direct(plain)
        assert not passing.is_direct(encrypted)
