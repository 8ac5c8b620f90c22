"""Files that run outside a transaction: marked, resumed, and never waited for inside a snapshot."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from fix_tenants import ORDERS
from tidegate.bootstrap.tenants.faults import MigrationSourceError, TenantBusyError
from tidegate.bootstrap.tenants.folder import check_folder
from tidegate.bootstrap.tenants.model import ItemState, RunOptions, RunState
from tidegate.bootstrap.tenants.worker.tidegate_records import Row
from tidegate.cluster.leases import Leases
from tidegate.engines.postgres import tenant_alone
from tidegate.engines.postgres.alone_statements import Index, built_by

if TYPE_CHECKING:
    from fix_tenants import Estate

INDEX = "CREATE INDEX CONCURRENTLY orders_note ON orders (note);"


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("CREATE INDEX CONCURRENTLY a ON t (x)", Index("a", "t", may_be_there=False)),
        (
            "create unique index concurrently if not exists A ON s.t (x)",
            Index("a", "s.t", may_be_there=True),
        ),
        (
            'CREATE INDEX CONCURRENTLY "A ""b" ON ONLY "T t"',
            Index('A "b', '"T t"', may_be_there=False),
        ),
        ("CREATE INDEX CONCURRENTLY ON t (x)", Index("", "t", may_be_there=False)),
        (
            f"CREATE INDEX CONCURRENTLY {'x' * 70} ON t (x)",
            Index("x" * 63, "t", may_be_there=False),
        ),
        ("CREATE INDEX a ON t (x)", None),
    ],
)
def test_the_index_of_a_statement_is_known_by_its_name(text: str, index: Index | None) -> None:
    assert built_by(text) == index


def test_a_file_of_such_statements_alone_needs_no_directive() -> None:
    """Situation tenants 02: recognised, or refused before anything runs."""
    for text in (
        INDEX,
        "VACUUM;",
        "DROP INDEX CONCURRENTLY a; REINDEX (VERBOSE) TABLE CONCURRENTLY t",
    ):
        (script,) = check_folder("/sql", {"001_a.sql": text.encode()}).scripts
        assert not script.version.is_transactional
    with pytest.raises(MigrationSourceError) as refused:
        check_folder("/sql", {"001_a.sql": f"SELECT 1;\n{INDEX}".encode()})
    (finding,) = refused.value.details["findings"]
    assert "line 2: CREATE INDEX CONCURRENTLY cannot run in a transaction" in finding["message"]
    told = f"-- tidegate: no-transaction\nSELECT 1;\n{INDEX}"
    assert len(check_folder("/sql", {"001_a.sql": told.encode()}).scripts[0].pieces) == 2


def rows(estate: Estate) -> list[Row]:
    with estate.connect() as connection:
        return [
            Row(*row)
            for row in connection.execute(
                "SELECT source, version, name, sha256, begun FROM t001.tidegate_migration"
                " ORDER BY version"
            )
        ]


def indexes(estate: Estate) -> dict[str, bool]:
    with estate.connect() as connection:
        return dict(
            connection.execute(
                "SELECT relname::text, indisvalid FROM pg_index JOIN pg_class ON oid = indexrelid"
                " WHERE relnamespace = 't001'::regnamespace AND NOT indisprimary"
            ).fetchall()
        )


def wait_for(estate: Estate, query: str) -> None:
    deadline = time.monotonic() + 20
    with estate.connect() as connection:
        while not connection.execute(query).fetchone():
            assert time.monotonic() < deadline, query
            time.sleep(0.02)


@pytest.mark.servers
@pytest.mark.slow
class TestInATenant:
    @pytest.mark.parametrize("step", [tenant_alone.BEGUN, tenant_alone.RAN])
    def test_a_kill_at_a_statement_is_marked_and_the_run_goes_on_there(
        self, estate: Estate, step: str
    ) -> None:
        """Situation tenants 02: a crash between such a file and its record."""
        estate.add_schemas(1)
        estate.write("001_orders.sql", ORDERS)
        # The first statement is not repeatable: run twice, the file fails.
        estate.write(
            "002_index.sql",
            f"-- tidegate: no-transaction\nCREATE TABLE once ();\n{INDEX}\nCREATE TABLE last ();",
        )
        estate.die_at(None, f"{step}#2")
        assert [row.begun for row in rows(estate)] == [None, 2]
        assert rows(estate)[1].sha256.startswith("begun ")
        for lease in Leases(estate.database).holders():
            assert lease.holder is not None
            Leases(estate.database).release_holder(lease.holder)
        run = estate.work(estate.service.runs.get(None))
        assert run.state is RunState.DONE, estate.items(run)
        assert [row.begun for row in rows(estate)] == [None, None]
        assert indexes(estate) == {"orders_note": True}

    def test_an_index_that_was_interrupted_is_dropped_and_built_again(self, estate: Estate) -> None:
        """Situation tenants 05: `retry` builds the invalid index again."""
        estate.add_schemas(1)
        estate.write("001_orders.sql", ORDERS)
        estate.upgrade()
        estate.write("002_index.sql", INDEX)
        reader = estate.connect(autocommit=False)
        reader.execute("INSERT INTO t001.orders VALUES (1, 'open')")
        run = estate.service.upgrade(
            estate.request(retries=0, max_failures=1, statement_timeout_s=60)
        )
        worker = threading.Thread(target=estate.work, args=[run])
        worker.start()
        wait_for(estate, "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONC%'")
        wait_for(estate, "SELECT 1 FROM pg_index WHERE NOT indisvalid")
        with estate.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE query LIKE 'CREATE INDEX CONC%' AND pid <> pg_backend_pid()"
            )
        worker.join(30)
        assert indexes(estate) == {"orders_note": False}
        reader.rollback()
        run = estate.work(estate.service.retry(run.id))
        assert run.state is RunState.DONE, estate.items(run)
        assert indexes(estate) == {"orders_note": True}

    def test_an_index_that_fails_by_itself_leaves_nothing_invalid(self, estate: Estate) -> None:
        """Situation tenants 05, a relative: a unique index over rows that are not."""
        estate.add_schemas(1)
        estate.write("001_orders.sql", ORDERS)
        estate.upgrade()
        with estate.connect() as connection:
            connection.execute("INSERT INTO t001.orders VALUES (1, 'x'), (2, 'x')")
        estate.write("002_unique.sql", "CREATE UNIQUE INDEX CONCURRENTLY u ON orders (note);")
        run = estate.upgrade()
        assert "could not create unique index" in estate.items(run)["t001"].message
        assert indexes(estate) == {}
        assert rows(estate)[1].begun == -1
        with estate.connect() as connection:
            connection.execute("DELETE FROM t001.orders")
        assert estate.work(estate.service.retry(run.id)).state is RunState.DONE
        assert indexes(estate) == {"u": True}

    def test_an_invalid_index_of_somebody_else_is_left_alone(self, estate: Estate) -> None:
        """Situation tenants 05, a relative: only what this file left is dropped."""
        estate.add_schemas(1)
        estate.write("001_orders.sql", ORDERS)
        estate.upgrade()
        with estate.connect() as connection:
            connection.execute("CREATE INDEX orders_note ON t001.orders (note)")
            connection.execute(
                "UPDATE pg_index SET indisvalid = false"
                " WHERE indexrelid = 't001.orders_note'::regclass"
            )
        estate.write("002_index.sql", INDEX.replace("CURRENTLY", "CURRENTLY IF NOT EXISTS"))
        run = estate.upgrade()
        for _ in range(2):
            assert "not by this file" in estate.items(run)["t001"].message
            assert indexes(estate) == {"orders_note": False}
            run = estate.work(estate.service.retry(run.id))
        with estate.connect() as connection:
            connection.execute("DROP INDEX t001.orders_note")
        assert estate.work(estate.service.retry(run.id)).state is RunState.DONE

    def test_a_login_during_an_index_build_hinders_it_not(self, estate: Estate) -> None:
        """Situation tenants 05: the lock is tried outside a transaction, and bounded."""
        estate.add_schemas(1)
        estate.write("001_orders.sql", ORDERS)
        estate.upgrade()
        estate.write("002_index.sql", INDEX)
        application = estate.connect(autocommit=False)
        application.execute("INSERT INTO t001.orders VALUES (1, 'open')")
        run = estate.service.upgrade(estate.request(lock_timeout_s=20))
        worker = threading.Thread(target=estate.work, args=[run])
        worker.start()
        wait_for(estate, "SELECT 1 FROM pg_index WHERE NOT indisvalid")
        logins: list[object] = []

        def login() -> None:
            options = RunOptions(lock_timeout_s=20)
            logins.append(estate.service.ensure("t001", estate.source, options))

        with pytest.raises(TenantBusyError, match="another session"):
            estate.service.ensure("t001", estate.source, RunOptions(lock_timeout_s=0.3))
        waiting = [threading.Thread(target=login) for _ in range(4)]
        for each in waiting:
            each.start()
        application.rollback()
        for each in (worker, *waiting):
            each.join(30)
        assert estate.states(run) == {"t001": ItemState.DONE}
        assert indexes(estate) == {"orders_note": True}
        assert logins == [(False, "002")] * 4

    def test_nothing_in_a_file_gives_up_the_tenants_lock(self, estate: Estate) -> None:
        """Situation tenants 05, a relative: the lock is held by a session of its own."""
        estate.add_schemas(1)
        estate.write(
            "001_a.sql",
            "-- tidegate: no-transaction\nDISCARD ALL;\nSELECT pg_advisory_unlock_all();\n"
            "SELECT 1 / (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory');",
        )
        assert estate.upgrade().state is RunState.DONE
