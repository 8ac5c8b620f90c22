"""Runs over real schemas: what is upgraded, retried, stopped, and what stays untouched."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psycopg
import pytest

from fix_tenants import ORDERS
from tidegate.bootstrap.tenants.faults import MigrationSourceError, TenantBusyError
from tidegate.bootstrap.tenants.model import ItemState, RunState
from tidegate.errors import ConflictError, FailedPreconditionError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_tenants import Estate
    from tidegate.engines.postgres.local import LocalServer

pytestmark = [pytest.mark.servers, pytest.mark.slow]


def test_every_tenant_gets_every_file_in_order(estate: Estate) -> None:
    names = estate.add_schemas(12)
    estate.write("001_orders.sql", ORDERS)
    estate.write("002_total.sql", "ALTER TABLE orders ADD COLUMN total numeric -- no semicolon")
    run = estate.upgrade(jobs=3)
    assert run.state is RunState.DONE
    assert estate.in_state(run, ItemState.DONE) == names
    for name in names:
        assert estate.tables(name) == ["orders", "tidegate_migration"]
        assert estate.recorded(name) == ["001", "002"]
    assert set(estate.stored().values()) == {"002"}


def test_three_failures_stop_the_wave_and_the_rest_stays_untouched(estate: Estate) -> None:
    names = estate.add_schemas(20)
    estate.write("001_orders.sql", ORDERS)
    estate.upgrade()
    estate.write("002_constraint.sql", "ALTER TABLE orders ADD CHECK (note <> 'poison');")
    poisoned = names[2:6]
    with estate.connect() as connection:
        for name in poisoned:
            connection.execute(f"INSERT INTO {name}.orders VALUES (1, 'poison')")
    run = estate.upgrade(jobs=1, max_failures=3)
    assert run.state is RunState.STOPPED
    assert estate.in_state(run, ItemState.FAILED) == names[2:5]
    assert estate.in_state(run, ItemState.DONE) == names[:2]
    assert estate.in_state(run, ItemState.PENDING) == names[5:]
    assert {estate.recorded(name)[-1] for name in names[5:]} == {"001"}
    failed = estate.items(run)[names[2]]
    assert failed.reason == "TG-TEN-MIGRATION"
    assert "002_constraint.sql" in failed.message
    assert "violated by some row" in failed.message
    assert failed.attempts == 1


def test_tenants_at_the_target_are_left_alone_without_a_connection(estate: Estate) -> None:
    estate.add_schemas(5)
    estate.write("001_orders.sql", ORDERS)
    estate.upgrade()
    estate.topology.change_tablet("zone1-100", conninfo="host=127.0.0.1 port=1 dbname=none")
    run = estate.upgrade()
    assert (run.state, run.at_target) == (RunState.DONE, 5)
    assert estate.items(run) == {}
    run = estate.upgrade(verify=True, retries=0, max_failures=5)
    assert estate.in_state(run, ItemState.FAILED) == [f"t00{n}" for n in range(1, 6)]


def test_a_commit_that_was_never_stored_is_found_at_the_next_look(estate: Estate) -> None:
    (name,) = estate.add_schemas(1)
    estate.write("001_orders.sql", ORDERS)
    estate.upgrade()
    tenant = estate.service.tenants.get(name)
    estate.service.tenants.store_version(tenant.id, estate.source, "")
    run = estate.upgrade()
    assert run.state is RunState.DONE
    assert estate.items(run)[name].from_version == "001"
    assert estate.stored() == {name: "001"}


def test_a_lock_that_is_held_costs_one_tenant_retries_and_the_others_nothing(
    estate: Estate,
) -> None:
    names = estate.add_schemas(6)
    estate.write("001_orders.sql", ORDERS)
    estate.upgrade()
    estate.write("002_total.sql", "ALTER TABLE orders ADD COLUMN total numeric;")
    application = estate.connect(autocommit=False)
    application.execute("SELECT * FROM t002.orders")
    run = estate.upgrade(jobs=2, retries=1, lock_timeout_s=0.1)
    assert run.state is RunState.PARTLY_FAILED
    held = estate.items(run)["t002"]
    assert (held.reason, held.attempts) == ("TG-TEN-LOCK", 2)
    assert "(shop)" in held.message  # whose session it is
    assert estate.in_state(run, ItemState.DONE) == [name for name in names if name != "t002"]
    application.rollback()
    run = estate.work(estate.service.retry(run.id))
    assert run.state is RunState.DONE
    assert estate.recorded("t002") == ["001", "002"]


def test_tenants_that_come_go_and_change_their_names_during_a_run(estate: Estate) -> None:
    estate.add_schemas(5)
    estate.write("001_orders.sql", ORDERS)
    with estate.connect() as connection:
        connection.execute("CREATE SCHEMA late")
    run = estate.service.upgrade(estate.request())
    registry = estate.service.registry
    registry.remove("t001")
    registry.rename("t002", "acme")
    with estate.connect() as connection:
        connection.execute("DROP SCHEMA t003")
    registry.add("late", registry.place(keyspace="saas", schema="late"))
    run = estate.work(run)
    assert run.state is RunState.DONE
    assert estate.in_state(run, ItemState.DONE) == ["acme", "late", "t004", "t005"]
    items = estate.items(run)
    assert {name: items[name].reason for name in ("t001", "t003")} == {
        "t001": "missing",
        "t003": "missing",
    }
    assert "not there" in items["t003"].message
    assert estate.tables("t001") == []
    assert estate.tables("t002") == ["orders", "tidegate_migration"]


def test_tenants_ahead_edited_or_unknown_fail_alone(estate: Estate) -> None:
    estate.add_schemas(4)
    estate.write("001_orders.sql", ORDERS)
    second = estate.write("002_total.sql", "ALTER TABLE orders ADD COLUMN total numeric;")
    estate.upgrade(tenants=("t001",))
    estate.upgrade(to="001", where="version<=001")
    second.unlink()
    source = f"sql:{estate.folder}/"  # the same folder under another name: nothing is recorded
    with estate.connect() as connection:
        connection.execute("UPDATE t002.tidegate_migration SET sha256 = 'other'")
        connection.execute("UPDATE t003.tidegate_migration SET version = '000'")
    run = estate.upgrade(source=source, verify=True, max_failures=9)
    failed = {name: item.message for name, item in estate.items(run).items() if item.message}
    assert "ahead of 001" in failed["t001"]
    assert "another wording" in failed["t002"]
    assert "does not know" in failed["t003"]
    assert estate.in_state(run, ItemState.DONE) == ["t004"]


def test_an_edited_file_is_refused_before_anything_once_a_tenant_has_it(estate: Estate) -> None:
    estate.add_schemas(2)
    estate.write("001_orders.sql", "SELECT broken();")
    assert estate.upgrade().state is RunState.STOPPED
    estate.service.cancel(None)
    estate.write("001_orders.sql", ORDERS)  # nobody has it yet: it may be mended
    assert estate.upgrade(tenants=("t001",)).state is RunState.DONE
    estate.write("001_orders.sql", ORDERS + " -- edited")
    with pytest.raises(MigrationSourceError, match="not the one"):
        estate.upgrade()
    assert estate.tables("t002") == []


def test_two_runs_on_the_same_tenants_are_refused(estate: Estate) -> None:
    estate.add_schemas(4)
    estate.write("001_orders.sql", ORDERS)
    first = estate.service.upgrade(estate.request(tenants=("t001", "t002")))
    with pytest.raises(ConflictError, match="upgraded by run 1"):
        estate.service.upgrade(estate.request())
    other = estate.upgrade(tenants=("t003",))
    assert other.state is RunState.DONE
    estate.service.cancel(first.id)
    assert estate.work(first).state is RunState.CANCELLED
    assert estate.upgrade().state is RunState.DONE


def test_a_run_is_paused_resumed_and_a_tenant_left_out(estate: Estate) -> None:
    names = estate.add_schemas(5)
    estate.write("001_orders.sql", ORDERS)
    run = estate.service.upgrade(estate.request())
    estate.service.pause(run.id)
    assert estate.work(run).state is RunState.PAUSED
    assert estate.in_state(run, ItemState.PENDING) == names
    estate.service.skip(run.id, ["t003"])
    with pytest.raises(FailedPreconditionError):
        estate.service.skip(run.id, ["t003"])
    with pytest.raises(NotFoundError):
        estate.service.skip(run.id, ["nobody"])
    run = estate.work(estate.service.resume(run.id))
    assert run.state is RunState.DONE
    assert estate.in_state(run, ItemState.SKIPPED) == ["t003"]
    for verb in (estate.service.pause, estate.service.resume, estate.service.cancel):
        with pytest.raises(FailedPreconditionError):
            verb(run.id)


def test_a_stopped_run_goes_on_in_spite_of_failures_that_were_seen(estate: Estate) -> None:
    names = estate.add_schemas(6)
    estate.write("001_orders.sql", ORDERS)
    with estate.connect() as connection:
        connection.execute("CREATE TABLE t001.orders (id int)")
    run = estate.upgrade(wave="canary:2", max_failures=1, jobs=1)
    assert run.state is RunState.STOPPED
    run = estate.work(estate.service.resume(run.id))
    assert run.state is RunState.PARTLY_FAILED
    assert estate.in_state(run, ItemState.DONE) == names[1:]


def test_a_shard_that_is_down_holds_up_no_other(
    estate: Estate, target_server: LocalServer, new_database: Callable[[LocalServer], str]
) -> None:
    estate.add_schemas(3)
    estate.write("001_orders.sql", ORDERS)
    other = new_database(target_server)
    with psycopg.connect(
        target_server.conninfo(other), password=target_server.password, autocommit=True
    ) as connection:
        connection.execute("CREATE SCHEMA far")
    estate.topology.add_keyspace("far", shards=["0"])
    estate.topology.add_tablet(
        "zone1-200",
        "far",
        "0",
        types=["primary"],
        conninfo=target_server.conninfo(other),
        secret=target_server.secret,
    )
    estate.service.registry.discover("far", schemas="far", register=True)
    target_server.stop("immediate")
    run = estate.upgrade(retries=1, jobs=2)
    assert run.state is RunState.PARTLY_FAILED
    assert estate.in_state(run, ItemState.DONE) == ["t001", "t002", "t003"]
    assert estate.items(run)["far"].reason == "TG-TEN-CONNECTION"
    target_server.start()
    assert estate.work(estate.service.retry(run.id, ["far"])).state is RunState.DONE


def test_a_session_that_is_ended_inside_its_transaction_is_tried_again(estate: Estate) -> None:
    estate.add_schemas(1)
    estate.write("001_kill.sql", ORDERS + "SELECT pg_terminate_backend(pg_backend_pid());")
    run = estate.upgrade(retries=1)
    item = estate.items(run)["t001"]
    assert (item.reason, item.attempts) == ("TG-TEN-CONNECTION", 2)
    assert estate.tables("t001") == []


def test_what_a_script_sets_or_holds_ends_with_its_tenant(estate: Estate) -> None:
    estate.add_schemas(3)
    estate.write(
        "001_leak.sql",
        "SET statement_timeout = '1h'; SET search_path = public; CREATE TEMP TABLE x (a int);"
        " SELECT pg_advisory_lock(42); RESET statement_timeout;",
    )
    estate.write("002_orders.sql", "RESET search_path;")
    assert estate.upgrade(jobs=1).state is RunState.DONE
    with estate.connect() as connection:
        assert connection.execute("SELECT pg_try_advisory_lock(42)").fetchone() == (True,)


def test_a_file_without_a_transaction_makes_an_index_concurrently(estate: Estate) -> None:
    estate.add_schemas(2)
    estate.write("001_orders.sql", ORDERS)
    estate.write(
        "002_index.sql",
        "-- tidegate: no-transaction\n"
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS orders_note ON orders (note);",
    )
    estate.write("003_total.sql", "ALTER TABLE orders ADD COLUMN total numeric;")
    assert estate.upgrade().state is RunState.DONE
    assert estate.recorded("t002") == ["001", "002", "003"]
    with estate.connect() as connection:
        connection.execute("INSERT INTO t001.orders VALUES (1, 'x'), (2, 'x')")
    estate.write(
        "004_unique.sql",
        "-- tidegate: no-transaction\nCREATE UNIQUE INDEX CONCURRENTLY u ON orders (note);",
    )
    run = estate.upgrade()
    assert estate.in_state(run, ItemState.FAILED) == ["t001"]
    with estate.connect() as connection:
        connection.execute("DELETE FROM t001.orders")
    assert estate.work(estate.service.retry(run.id)).state is RunState.DONE


def test_a_tenant_may_be_a_database_of_its_own(
    estate: Estate, source_server: LocalServer, new_database: Callable[[LocalServer], str]
) -> None:
    estate.write("001_orders.sql", ORDERS)
    names = [new_database(source_server), new_database(source_server)]
    for name in names:
        estate.service.registry.add(
            name, estate.service.registry.place(tablet="zone1-100", database=name)
        )
    estate.service.registry.add(
        "gone", estate.service.registry.place(keyspace="saas", database="no_such_database")
    )
    run = estate.upgrade()
    assert run.state is RunState.DONE
    assert estate.in_state(run, ItemState.DONE) == sorted(names)
    assert estate.items(run)["gone"].reason == "missing"
    found = estate.service.registry.discover("saas", databases=f"{names[0][:2]}%")
    assert set(names) <= {each.name for each in found if each.is_registered}


def test_migrations_run_under_the_role_that_is_to_own_what_they_make(estate: Estate) -> None:
    estate.add_schemas(1)
    estate.write("001_orders.sql", ORDERS)
    with estate.connect() as connection:
        connection.execute(
            "DO $$ BEGIN CREATE ROLE shop_owner; EXCEPTION WHEN duplicate_object THEN END $$;"
            "GRANT ALL ON SCHEMA t001 TO shop_owner"
        )
    estate.service.sources.add("app", estate.source, role="shop_owner")
    assert estate.upgrade(source="app").state is RunState.DONE
    with estate.connect() as connection:
        row = connection.execute(
            "SELECT tableowner FROM pg_tables WHERE schemaname = 't001' AND tablename = 'orders'"
        ).fetchone()
        connection.execute("DROP OWNED BY shop_owner")
    assert row == ("shop_owner",)


def test_one_tenant_is_brought_to_the_head_at_its_login(estate: Estate) -> None:
    estate.add_schemas(2)
    estate.write("001_orders.sql", ORDERS)
    service = estate.service
    assert service.ensure("t001", estate.source) == (True, "001")
    estate.topology.change_tablet("zone1-100", conninfo="host=127.0.0.1 port=1 dbname=none")
    assert service.ensure("t001", estate.source) == (False, "001")
    with pytest.raises(TenantBusyError):
        service.ensure("t002", estate.source)


def test_many_that_ask_for_one_tenant_at_once_upgrade_it_once(estate: Estate) -> None:
    estate.add_schemas(1)
    estate.write("001_orders.sql", ORDERS + "INSERT INTO orders VALUES (1, 'once');")
    with ThreadPoolExecutor(8) as pool:
        asked = list(pool.map(lambda _: estate.service.ensure("t001", estate.source), range(8)))
    assert {version for _, version in asked} == {"001"}
    assert [upgraded for upgraded, _ in asked].count(True) == 1


def test_a_run_to_an_older_version_is_refused_before_anything_runs(estate: Estate) -> None:
    """Situation tenants 09: the dry run said "would run", the run failed and stopped."""
    estate.add_schemas(3)
    estate.write("001_orders.sql", ORDERS)
    estate.write("002_total.sql", "ALTER TABLE orders ADD COLUMN total numeric;")
    estate.upgrade(tenants=("t001", "t002"))
    for verb in (estate.service.plan, estate.service.upgrade):
        with pytest.raises(FailedPreconditionError, match=r"2 of 3 tenants are ahead of 001: t001"):
            verb(estate.request(to="001"))
    assert estate.service.runs.all(limit=5)[1:] == []
    assert estate.tables("t003") == []
    run = estate.upgrade(to="001", where="version<=001")
    assert run.state is RunState.DONE
    assert estate.stored() == {"t001": "002", "t002": "002", "t003": "001"}


def test_schemas_with_odd_names_are_found_registered_and_upgraded(estate: Estate) -> None:
    """Situation tenants 07: ``t 1``, ``t%1``, ``t/1`` and ``t_1`` are four tenants."""
    schemas = ["t 1", "t%1", "t/1", "t_1"]
    estate.service.registry.add("t_1", estate.service.registry.place(keyspace="saas", schema="x"))
    with estate.connect() as connection:
        for schema in schemas:
            connection.execute(f'CREATE SCHEMA "{schema}"'.encode())
    found = estate.service.registry.discover("saas", schemas="t%", register=True)
    assert {each.place.schema: each.name for each in found} == {
        "t 1": "t~201",
        "t%1": "t~251",
        "t/1": "t~2F1",
        "t_1": "t_1@0",
    }
    estate.write("001_orders.sql", ORDERS)
    run = estate.upgrade(tenants=("t~*", "t_1@0"))
    assert len(estate.in_state(run, ItemState.DONE)) == 4
    for schema in schemas:
        assert estate.recorded(schema) == ["001"]
