"""The fence as it stands on the tables: coverage, exemption, lifting, removing (rules 6 and 7)."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from fix_databases import Worker, wait_until
from tidegate.engines.postgres import fence
from tidegate.errors import FailedPreconditionError, NotFoundError, WaitTimeoutError
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from fix_databases import Database
    from tidegate.engines.postgres.local import LocalServer

pytestmark = pytest.mark.servers

UUID = "0192f0a4-5b5e-7c3a-8f00-0123456789ab"
ACCOUNT, CHILD = TableName("public", "account"), TableName("public", "child")
WORKFLOW = "move's shop"

SCHEMA = """
CREATE SCHEMA _tidegate;
CREATE TABLE public.parent (id int PRIMARY KEY);
CREATE TABLE public.account (id int PRIMARY KEY, balance int NOT NULL);
CREATE TABLE public.child (
  id int PRIMARY KEY, parent int REFERENCES public.parent ON DELETE CASCADE ON UPDATE CASCADE);
INSERT INTO public.parent SELECT generate_series(1, 50);
INSERT INTO public.account SELECT g, 100 FROM generate_series(1, 50) g;
INSERT INTO public.child SELECT g, g FROM generate_series(1, 50) g;
GRANT ALL ON ALL TABLES IN SCHEMA public TO application;
"""


@pytest.fixture
def admin(database: Database) -> Iterator[Connection[TupleRow]]:
    with database.admin() as connection:
        connection.execute(SCHEMA)
        connection.execute(fence.DDL)
        yield connection


def armed(admin: Connection[TupleRow], *, denying: bool = True) -> None:
    fence.arm(admin, UUID, "source", [ACCOUNT, CHILD], workflow=WORKFLOW, denying=denying)


WRITES = {
    "insert": "INSERT INTO public.account VALUES (1000, 1)",
    "update": "UPDATE public.account SET balance = 0",
    "update of no row": "UPDATE public.account SET balance = 0 WHERE id = -1",
    "delete": "DELETE FROM public.account WHERE id = 1",
    "merge": "MERGE INTO public.account a USING (SELECT 1 AS id) s ON a.id = s.id"
    " WHEN MATCHED THEN UPDATE SET balance = 7",
    "truncate": "TRUNCATE public.account",
    "truncate cascade": "TRUNCATE public.parent CASCADE",
    "cascaded delete": "DELETE FROM public.parent WHERE id = 1",
    "cascaded update": "UPDATE public.parent SET id = 1000 WHERE id = 1",
    "upsert": "INSERT INTO public.account VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET balance = 1",
    "writable with": "WITH d AS (DELETE FROM public.account RETURNING *) SELECT count(*) FROM d",
    "loop": "DO $$ BEGIN FOR i IN 1..3 LOOP UPDATE public.account SET balance = i; END LOOP;"
    " END $$",
}


@pytest.mark.parametrize("write", WRITES)
def test_every_kind_of_write_is_denied_and_let_on_again(
    database: Database, admin: Connection[TupleRow], write: str
) -> None:
    armed(admin)
    with database.application() as shop:
        with pytest.raises(psycopg.Error) as caught:
            shop.execute(WRITES[write])
        assert caught.value.sqlstate == fence.FENCE_SQLSTATE
        assert WORKFLOW in str(caught.value)
        assert caught.value.diag.table_name in ("account", "child")
        assert fence.lift(admin, UUID, "source")
        if "truncate" not in write:  # needs ownership beyond the fence
            shop.execute(WRITES[write])


def test_copy_is_denied(database: Database, admin: Connection[TupleRow]) -> None:
    armed(admin)
    with database.application() as shop:
        with (
            pytest.raises(psycopg.Error) as caught,
            shop.cursor() as cursor,
            cursor.copy("COPY public.account FROM STDIN") as copy,
        ):
            copy.write("1000\t5\n")
        assert caught.value.sqlstate == fence.FENCE_SQLSTATE


def test_readers_and_row_locks_are_not_denied(
    database: Database, admin: Connection[TupleRow]
) -> None:
    armed(admin)
    with database.application() as shop:
        shop.execute("SELECT * FROM public.account FOR UPDATE")


def test_our_own_role_is_exempt_and_a_superuser_in_replica_role_is_not(
    admin: Connection[TupleRow],
) -> None:
    armed(admin)
    admin.execute("CREATE ROLE other_admin SUPERUSER; SET session_replication_role = replica")
    try:
        admin.execute("SET SESSION AUTHORIZATION other_admin")
        with pytest.raises(psycopg.Error) as caught:
            admin.execute(WRITES["update"])
        assert caught.value.sqlstate == fence.FENCE_SQLSTATE
        admin.execute("RESET SESSION AUTHORIZATION")
        admin.execute("SET session_replication_role = origin")
        for write in ("insert", "update", "merge", "cascaded delete", "truncate"):
            admin.execute(WRITES[write])
    finally:
        admin.execute("RESET SESSION AUTHORIZATION")
        admin.execute("DROP ROLE other_admin")


def test_a_deletion_passes_an_open_fence_of_rows(
    database: Database, admin: Connection[TupleRow]
) -> None:
    """A row trigger that returned NEW for a DELETE would swallow it."""
    admin.execute("CREATE TABLE public.heir () INHERITS (public.account)")
    admin.execute(
        "INSERT INTO public.heir VALUES (500, 1); GRANT ALL ON public.heir TO application"
    )
    heir = TableName("public", "heir")
    fence.arm(admin, UUID, "source", [heir], workflow=WORKFLOW, denying=False)
    with database.application() as shop:
        assert shop.execute("UPDATE public.heir SET balance = 3").rowcount == 1
        assert shop.execute("DELETE FROM public.heir").rowcount == 1
        assert shop.execute("INSERT INTO public.heir VALUES (501, 1)").rowcount == 1


def test_a_write_through_an_inheritance_parent_outside_the_set_is_denied(
    database: Database, admin: Connection[TupleRow]
) -> None:
    admin.execute("CREATE TABLE public.heir () INHERITS (public.account)")
    admin.execute("INSERT INTO public.heir VALUES (500, 1)")
    fence.arm(admin, UUID, "source", [TableName("public", "heir")], workflow=WORKFLOW, denying=True)
    with database.application() as shop:
        for write in ("update", "writable with"):
            with pytest.raises(psycopg.Error) as caught:
                shop.execute(WRITES[write])
            assert caught.value.sqlstate == fence.FENCE_SQLSTATE
        shop.execute("UPDATE ONLY public.account SET balance = 3")


def test_a_native_subscription_is_denied(
    database: Database,
    admin: Connection[TupleRow],
    make_database: Callable[[LocalServer], Database],
) -> None:
    publisher = make_database(database.server)
    with publisher.admin() as other:
        other.execute("CREATE TABLE public.account (id int PRIMARY KEY, balance int NOT NULL)")
        other.execute("CREATE PUBLICATION feed FOR TABLE public.account")
        other.execute("SELECT pg_create_logical_replication_slot('feed', 'pgoutput')")
        conninfo = (
            f"{publisher.server.conninfo(publisher.name)} password={publisher.server.password}"
        )
        admin.execute(
            "CREATE ROLE other_admin SUPERUSER LOGIN; SET SESSION AUTHORIZATION other_admin"
        )
        admin.execute(
            f"CREATE SUBSCRIPTION feed CONNECTION '{conninfo}' PUBLICATION feed"
            " WITH (create_slot = false, slot_name = 'feed', copy_data = false,"
            " disable_on_error = true)"
        )
        admin.execute("RESET SESSION AUTHORIZATION")
        try:
            armed(admin)
            other.execute("INSERT INTO public.account VALUES (999, 9)")
            wait_until(
                lambda: (
                    admin.execute(
                        "SELECT subenabled FROM pg_subscription WHERE subname = 'feed'"
                    ).fetchone()
                    == (False,)
                )
            )
            assert admin.execute("SELECT 1 FROM public.account WHERE id = 999").fetchone() is None
        finally:
            admin.execute("ALTER SUBSCRIPTION feed DISABLE")
            admin.execute("ALTER SUBSCRIPTION feed SET (slot_name = NONE)")
            admin.execute("DROP SUBSCRIPTION feed; DROP ROLE other_admin")


def test_arming_again_adds_what_is_missing_and_never_opens(
    database: Database, admin: Connection[TupleRow]
) -> None:
    armed(admin)
    admin.execute("ALTER TABLE public.account DISABLE TRIGGER ALL")
    now = fence.state(admin, UUID, "source")
    assert now is not None
    assert (now.denying, now.unprotected, now.workflow) == (True, (ACCOUNT,), WORKFLOW)
    armed(admin, denying=False)
    again = fence.state(admin, UUID, "source")
    assert again is not None
    assert (again.denying, again.unprotected, again.tables) == (True, (), (ACCOUNT, CHILD))
    with database.application() as shop, pytest.raises(psycopg.Error):
        shop.execute(WRITES["update"])


def test_a_fence_with_a_hole_does_not_deny(admin: Connection[TupleRow]) -> None:
    armed(admin, denying=False)
    admin.execute("DROP TABLE public.account; CREATE TABLE public.account (id int)")
    with pytest.raises(FailedPreconditionError, match="account"):
        fence.deny(admin, UUID, "source")
    now = fence.state(admin, UUID, "source")
    assert now is not None
    assert not now.denying


def test_the_two_sides_of_a_workflow_are_two_fences(admin: Connection[TupleRow]) -> None:
    fence.arm(admin, UUID, "source", [ACCOUNT], workflow=WORKFLOW, denying=False)
    fence.arm(admin, UUID, "target", [CHILD], workflow=WORKFLOW, denying=True)
    assert [(f.side, f.denying) for f in fence.read_fences(admin)] == [
        ("source", False),
        ("target", True),
    ]
    assert fence.remove(admin, UUID, "target")
    assert [f.side for f in fence.read_fences(admin, UUID)] == ["source"]


def test_removing_leaves_nothing_and_may_be_repeated(admin: Connection[TupleRow]) -> None:
    armed(admin)
    admin.execute("DROP TABLE public.child")
    assert fence.remove(admin, UUID, "source")
    assert not fence.remove(admin, UUID, "source")
    assert admin.execute(
        "SELECT (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal),"
        " (SELECT count(*) FROM pg_proc WHERE pronamespace = '_tidegate'::regnamespace),"
        " (SELECT count(*) FROM _tidegate.fence)"
    ).fetchone() == (0, 0, 0)


def test_a_shard_without_tidegate_has_no_fence(database: Database) -> None:
    with database.admin() as connection:
        assert fence.state(connection, UUID, "source") is None
        assert not fence.remove(connection, UUID, "source")
        with pytest.raises(NotFoundError):
            fence.deny(connection, UUID, "source")


@pytest.mark.alone
def test_arming_beside_an_idle_writer_is_bounded_and_does_not_stop_others(
    database: Database, admin: Connection[TupleRow]
) -> None:
    idle, shop = database.application(autocommit=False), database.application()
    idle.execute("UPDATE public.account SET balance = 1 WHERE id = 1")
    wait_until(lambda: bool(fence.holders(admin, [ACCOUNT], 0.3)))
    work = Worker(
        lambda: fence.arm(
            database.admin(),
            UUID,
            "source",
            [ACCOUNT],
            workflow=WORKFLOW,
            denying=False,
            timeout_s=1.0,
        )
    )
    slowest = 0.0
    while work.is_alive():
        began = time.monotonic()
        shop.execute("UPDATE public.account SET balance = 2 WHERE id = 2")
        slowest = max(slowest, time.monotonic() - began)
    with pytest.raises(WaitTimeoutError, match=f"session {idle.info.backend_pid} ") as caught:
        work.result()
    assert caught.value.details["holders"][0]["application"] == "shop"
    assert slowest < 0.25
    idle.rollback()
    fence.arm(admin, UUID, "source", [ACCOUNT], workflow=WORKFLOW, denying=False)


def test_arming_does_not_queue_behind_a_vacuum_and_names_it(
    database: Database, admin: Connection[TupleRow]
) -> None:
    vacuum = database.admin()
    admin.execute("INSERT INTO public.account SELECT g, 1 FROM generate_series(100, 30000) g")
    admin.execute("DELETE FROM public.account WHERE id >= 100")
    vacuum.execute("SET vacuum_cost_delay = 20; SET vacuum_cost_limit = 10")
    work = Worker(lambda: vacuum.execute("VACUUM public.account"))
    wait_until(
        lambda: admin.execute("SELECT 1 FROM pg_stat_progress_vacuum").fetchone() is not None
    )
    wait_until(
        lambda: (
            admin.execute(
                "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
                " AND xact_start < clock_timestamp() - interval '300 ms'",
                [vacuum.info.backend_pid],
            ).fetchone()
            is not None
        )
    )
    with pytest.raises(WaitTimeoutError, match=f"session {vacuum.info.backend_pid} "):
        fence.arm(admin, UUID, "source", [ACCOUNT], workflow=WORKFLOW, denying=False, timeout_s=0.3)
    vacuum.cancel_safe()
    with contextlib.suppress(psycopg.errors.QueryCanceled):
        work.result()


@pytest.mark.alone
def test_lifting_never_waits_for_a_reader_and_removing_says_who_reads(
    database: Database, admin: Connection[TupleRow]
) -> None:
    armed(admin, denying=False)
    reader = database.application(autocommit=False)
    reader.execute("SELECT count(*) FROM public.account")
    began = time.monotonic()
    fence.deny(admin, UUID, "source")
    drained = fence.drain(admin, UUID, "source")
    fence.lift(admin, UUID, "source")
    assert drained.transactions == 0
    assert time.monotonic() - began < 1
    wait_until(lambda: _open_for(admin, reader.info.backend_pid) > 0.3)
    with pytest.raises(WaitTimeoutError, match=f"session {reader.info.backend_pid} "):
        fence.remove(admin, UUID, "source", timeout_s=0.3)
    with database.application() as shop:
        shop.execute(WRITES["update"])
    reader.rollback()
    assert fence.remove(admin, UUID, "source")


def _open_for(admin: Connection[TupleRow], pid: int) -> float:
    row = admin.execute(
        "SELECT extract(epoch FROM clock_timestamp() - xact_start)::float8"
        " FROM pg_stat_activity WHERE pid = %s",
        [pid],
    ).fetchone()
    assert row is not None
    return float(row[0])


def test_holders_are_those_that_hold_a_writer_s_lock_for_long(
    database: Database, admin: Connection[TupleRow]
) -> None:
    writer = database.application(autocommit=False)
    reader = database.application(autocommit=False)
    writer.execute("DELETE FROM public.account WHERE id = -1")
    reader.execute("SELECT * FROM public.account FOR SHARE")
    assert fence.holders(admin, [ACCOUNT], 3600) == []
    assert fence.holders(admin, [CHILD], 0) == []
    (holder,) = fence.holders(admin, [ACCOUNT, CHILD], 0)
    assert (holder.pid, holder.role) == (writer.info.backend_pid, "application")


def test_tables_made_and_fenced_in_one_transaction_are_never_seen_open(
    database: Database, admin: Connection[TupleRow]
) -> None:
    with admin.transaction():
        admin.execute("CREATE TABLE public.fresh (id int PRIMARY KEY)")
        admin.execute("GRANT ALL ON public.fresh TO application")
        fence.arm_new(admin, UUID, "target", [TableName("public", "fresh")], workflow=WORKFLOW)
    with database.application() as shop, pytest.raises(psycopg.Error) as caught:
        shop.execute("INSERT INTO public.fresh VALUES (1)")
    assert caught.value.sqlstate == fence.FENCE_SQLSTATE
