"""After a drain nothing changes any more, whoever wrote (rule 6)."""

from __future__ import annotations

import itertools
import statistics
import time
from functools import partial
from typing import TYPE_CHECKING

import psycopg
import pytest

from fix_databases import Worker
from tidegate.engines.postgres import fence
from tidegate.errors import FailedPreconditionError, WaitTimeoutError
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from fix_databases import Database
    from tidegate.engines.postgres.local import LocalServer

pytestmark = pytest.mark.servers

UUID = "0192f0a4-5b5e-7c3a-8f00-0123456789ab"
TABLES = [TableName("public", name) for name in ("account", "child", "log")]

SCHEMA = """
CREATE SCHEMA _tidegate;
CREATE TABLE public.parent (id int PRIMARY KEY);
CREATE TABLE public.account (id int PRIMARY KEY, balance int NOT NULL);
CREATE TABLE public.child (
  id int PRIMARY KEY, parent int REFERENCES public.parent ON DELETE CASCADE);
CREATE TABLE public.log (id bigint GENERATED ALWAYS AS IDENTITY, what text);
INSERT INTO public.account SELECT g, 100 FROM generate_series(1, 200) g;
GRANT ALL ON ALL TABLES IN SCHEMA public TO application;
GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO application;
"""

SUM = """
SELECT (SELECT sum(hashtextextended(a::text, 0)::numeric) FROM public.account a),
       (SELECT sum(hashtextextended(c::text, 0)::numeric) FROM public.child c),
       (SELECT sum(hashtextextended(l::text, 0)::numeric) FROM public.log l)
"""

CYCLES = 40


@pytest.fixture
def shop(special_server: LocalServer, make_database: Callable[[LocalServer], Database]) -> Database:
    database = make_database(special_server)
    with database.admin() as connection:
        connection.execute(SCHEMA)
        connection.execute(fence.DDL)
        fence.arm(connection, UUID, "source", TABLES, workflow="move", denying=False)
    return database


_numbers = itertools.count(1)


def transfer(session: Connection[TupleRow]) -> None:
    with session.transaction():
        session.execute("UPDATE public.account SET balance = balance - 1 WHERE id = 1")
        session.execute("UPDATE public.account SET balance = balance + 1 WHERE id = 2")


def repeatable_read(session: Connection[TupleRow]) -> None:
    with session.transaction():
        session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        session.execute("SELECT count(*) FROM public.parent")
        session.execute("UPDATE public.account SET balance = balance + 1 WHERE id = 3")
        session.execute("INSERT INTO public.log (what) VALUES ('rr')")


def prepared(session: Connection[TupleRow]) -> None:
    name = f"p{next(_numbers)}"
    session.execute("BEGIN")
    try:
        session.execute("UPDATE public.account SET balance = balance + 1 WHERE id = 4")
        session.execute(f"PREPARE TRANSACTION '{name}'")
    except psycopg.Error:
        session.execute("ROLLBACK")
        raise
    session.execute(f"COMMIT PREPARED '{name}'")


def loop(session: Connection[TupleRow]) -> None:
    session.execute(
        "DO $$ BEGIN FOR i IN 1..20 LOOP"
        " UPDATE public.account SET balance = balance + 1 WHERE id = 5;"
        " INSERT INTO public.log (what) VALUES ('loop');"
        " IF i % 5 = 0 THEN COMMIT; END IF; END LOOP; END $$"
    )


def copy(session: Connection[TupleRow]) -> None:
    with session.cursor() as cursor, cursor.copy("COPY public.log (what) FROM STDIN") as stream:
        for _ in range(20):
            stream.write("copy\n")


def truncate(session: Connection[TupleRow]) -> None:
    with session.transaction():
        session.execute("TRUNCATE public.log")
        session.execute("INSERT INTO public.log (what) VALUES ('after truncate')")


def merge(session: Connection[TupleRow]) -> None:
    session.execute(
        "MERGE INTO public.account a USING generate_series(6, 12) AS s(id) ON a.id = s.id"
        " WHEN MATCHED THEN UPDATE SET balance = a.balance + 1"
    )


def cascade(session: Connection[TupleRow]) -> None:
    number = next(_numbers)
    with session.transaction():
        session.execute("INSERT INTO public.parent VALUES (%s)", [number])
        session.execute("INSERT INTO public.child VALUES (%s, %s)", [number, number])
    session.execute("DELETE FROM public.parent WHERE id = %s", [number])


WRITERS = (transfer, repeatable_read, prepared, loop, copy, truncate, merge, cascade)

#: What a writer may meet and goes on after.
TOLERATED = {fence.FENCE_SQLSTATE, "40001", "40P01", "55P03"}


class Load:
    """Every kind of writer in a thread of its own, until stopped."""

    def __init__(self, database: Database) -> None:
        self.stopped = False
        self.written: dict[str, int] = {}
        self.denied: dict[str, int] = {}
        self.threads = [Worker(partial(self._run, database, write)) for write in WRITERS]

    def _run(self, database: Database, write: Callable[[Connection[TupleRow]], None]) -> None:
        name = write.__name__
        with database.application() as session:
            while not self.stopped:
                try:
                    write(session)
                    self.written[name] = self.written.get(name, 0) + 1
                except psycopg.Error as error:
                    assert error.sqlstate in TOLERATED, error  # noqa: PT017 - not the tested call
                    if error.sqlstate == fence.FENCE_SQLSTATE:
                        self.denied[name] = self.denied.get(name, 0) + 1

    def stop(self) -> None:
        self.stopped = True
        for thread in self.threads:
            thread.result()


def test_no_sum_changes_after_a_drain(
    shop: Database, record_property: Callable[[str, object], None]
) -> None:
    load = Load(shop)
    pauses, lifts, changed_between = [], [], 0
    before: tuple[object, ...] | None = None
    with shop.admin() as admin:
        for _ in range(CYCLES):
            began = time.monotonic()
            fence.deny(admin, UUID, "source")
            fence.drain(admin, UUID, "source", timeout_s=10)
            pauses.append((time.monotonic() - began) * 1000)
            first = admin.execute(SUM).fetchone()
            target = sum(load.denied.values()) + 5
            deadline = time.monotonic() + 0.05
            while sum(load.denied.values()) < target and time.monotonic() < deadline:
                assert admin.execute(SUM).fetchone() == first
            assert admin.execute(SUM).fetchone() == first
            began = time.monotonic()
            fence.lift(admin, UUID, "source")
            lifts.append((time.monotonic() - began) * 1000)
            changed_between += first != before
            before = first
            _wait_for_more(load)
    load.stop()
    figures = {
        "deny and drain, ms": _figures(pauses),
        "lift, ms": _figures(lifts),
        "written": load.written,
        "denied": load.denied,
    }
    record_property("fence", figures)
    print(figures)  # noqa: T201 - shown with -s and when the test fails
    assert changed_between == CYCLES
    assert set(load.written) == set(load.denied) == {w.__name__ for w in WRITERS}


def _wait_for_more(load: Load) -> None:
    """Go on when writers have written again."""
    before, deadline = sum(load.written.values()), time.monotonic() + 10
    while sum(load.written.values()) < before + 10:
        assert time.monotonic() < deadline, "nobody writes"
        time.sleep(0.002)


def _figures(values: list[float]) -> str:
    return f"median {statistics.median(values):.1f}, max {max(values):.1f}, n {len(values)}"


def test_an_open_writer_is_waited_for_and_named(shop: Database) -> None:
    with shop.admin() as admin, shop.application(autocommit=False) as writer:
        writer.execute("UPDATE public.account SET balance = 0 WHERE id = 9")
        fence.deny(admin, UUID, "source")
        with pytest.raises(WaitTimeoutError, match=f"session {writer.info.backend_pid} ") as caught:
            fence.drain(admin, UUID, "source", timeout_s=0.1)
        assert "pg_terminate_backend" in caught.value.next_step
        waiting = Worker(lambda: fence.drain(shop.admin(), UUID, "source", timeout_s=10))
        writer.execute("SELECT 1")  # it may read on, and commit what it did
        writer.commit()
        waiting.result()
        with pytest.raises(psycopg.Error, match="stopped by Tidegate"):
            writer.execute("UPDATE public.account SET balance = 0 WHERE id = 9")
        writer.rollback()


def test_a_transaction_prepared_during_the_drain_is_waited_for(shop: Database) -> None:
    """Its locks pass to another holder, which the first look cannot have seen."""
    with shop.admin() as admin, shop.application() as writer:
        writer.execute("BEGIN; UPDATE public.account SET balance = 0 WHERE id = 9")
        fence.deny(admin, UUID, "source")
        waiting = Worker(lambda: fence.drain(shop.admin(), UUID, "source", timeout_s=10))
        writer.execute("PREPARE TRANSACTION 'late'")
        with pytest.raises(WaitTimeoutError, match="prepared transaction 'late'"):
            fence.drain(admin, UUID, "source", timeout_s=0.2)
        assert waiting.is_alive()
        writer.execute("COMMIT PREPARED 'late'")
        waiting.result()


def test_an_old_snapshot_does_not_write_past_the_fence(shop: Database) -> None:
    with shop.admin() as admin, shop.application(autocommit=False) as writer:
        writer.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        writer.execute("SELECT count(*) FROM public.account")
        fence.deny(admin, UUID, "source")
        assert fence.drain(admin, UUID, "source").transactions == 0
        with pytest.raises(psycopg.Error, match="stopped by Tidegate"):
            writer.execute("UPDATE public.account SET balance = 0")
        writer.rollback()


def test_an_open_fence_cannot_be_drained(shop: Database) -> None:
    with shop.admin() as admin, pytest.raises(FailedPreconditionError):
        fence.drain(admin, UUID, "source")


def test_a_vacuum_under_way_does_not_hold_the_drain_up(shop: Database) -> None:
    with shop.admin() as admin, shop.admin() as other, other.transaction():
        other.execute("LOCK TABLE public.account IN SHARE UPDATE EXCLUSIVE MODE")
        fence.deny(admin, UUID, "source")
        assert fence.drain(admin, UUID, "source").transactions == 0
