"""Downgrades: said explicitly, where the source can; refused before anything where it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from fix_tenants import ORDERS
from make_apps import make_alembic, make_django, make_function
from tidegate.bootstrap.tenants.model import ItemState, RunState
from tidegate.cluster.leases import Leases
from tidegate.errors import FailedPreconditionError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fix_tenants import Estate
    from tidegate.engines.postgres.local import LocalServer

pytestmark = [pytest.mark.servers, pytest.mark.slow]


def three_versions(estate: Estate) -> None:
    estate.write("001_orders.up.sql", ORDERS)
    estate.write("001_orders.down.sql", "DROP TABLE orders;")
    estate.write("002_total.up.sql", "ALTER TABLE orders ADD COLUMN total numeric;")
    estate.write("002_total.down.sql", "ALTER TABLE ${schema}.orders DROP COLUMN total;")
    estate.write("003_more.sql", "CREATE TABLE more (id int);")
    estate.write("003_more.down.sql", "DROP TABLE more; SET search_path = public")


def test_schemas_and_databases_are_taken_back_file_by_file(
    estate: Estate, new_database: Callable[[LocalServer], str]
) -> None:
    """Situation tenants 09: ``upgrade --to`` an older version, said explicitly."""
    estate.add_schemas(3)
    database = new_database(estate.server)
    place = estate.service.registry.place(keyspace="saas", database=database)
    estate.service.registry.add("whole", place)
    three_versions(estate)
    estate.upgrade()
    estate.service.registry.rename("t003", "late")
    with pytest.raises(FailedPreconditionError, match="ahead of 001"):
        estate.upgrade(to="001")
    plan = estate.service.plan(estate.request(to="001", downgrade=True)).to_json()
    assert plan["steps"] == [{"from": "003", "tenants": 4, "versions": ["003", "002"]}]
    run = estate.upgrade(to="001", downgrade=True)
    assert run.state is RunState.DONE, estate.items(run)
    assert set(estate.stored().values()) == {"001"}
    for schema in ("t001", "t002", "t003"):
        assert estate.recorded(schema) == ["001"]
        assert estate.tables(schema) == ["orders", "tidegate_migration"]
    with psycopg.connect(
        estate.server.conninfo(database), password=estate.server.password
    ) as connection:
        assert connection.execute("SELECT to_regclass('more')").fetchone() == (None,)
    assert estate.upgrade(to="001", downgrade=True).at_target == 4
    assert estate.upgrade().state is RunState.DONE
    assert estate.recorded("t001") == ["001", "002", "003"]


def test_a_downgrade_that_fails_leaves_a_version_and_what_is_behind_is_left_alone(
    estate: Estate,
) -> None:
    """Situation tenants 09: each version is undone in one transaction with its record."""
    estate.add_schemas(3)
    three_versions(estate)
    estate.upgrade(tenants=("t001", "t002"))
    estate.upgrade(to="001", tenants=("t003",))
    with estate.connect() as connection:
        connection.execute("CREATE VIEW t001.totals AS SELECT total FROM t001.orders")
    run = estate.upgrade(to="001", downgrade=True, max_failures=9)
    assert estate.states(run) == {"t001": ItemState.FAILED, "t002": ItemState.DONE}
    assert "002_total.down.sql" in estate.items(run)["t001"].message
    assert estate.recorded("t001") == ["001", "002"]
    assert estate.stored() == {"t001": "002", "t002": "001", "t003": "001"}
    with estate.connect() as connection:
        connection.execute("DROP VIEW t001.totals")
    assert estate.work(estate.service.retry(run.id)).state is RunState.DONE
    assert estate.recorded("t001") == ["001"]


def test_a_process_that_dies_between_two_steps_back_goes_on(estate: Estate) -> None:
    """Situation tenants 09: whatever was committed is found by the next look."""
    estate.add_schemas(2)
    three_versions(estate)
    estate.upgrade()
    estate.die_at(None, "tenant.committed#1", to="001", downgrade=True, jobs=1)
    assert min(map(estate.recorded, ("t001", "t002"))) == ["001", "002"]
    leases = Leases(estate.database)
    for row in leases.holders():
        assert row.holder is not None
        leases.release_holder(row.holder)
    run = estate.work(estate.service.runs.get(None))
    assert run.state is RunState.DONE
    assert estate.recorded("t001") == estate.recorded("t002") == ["001"]


def test_what_cannot_be_taken_back_is_refused_before_anything(
    estate: Estate, tmp_path: Path
) -> None:
    """Situation tenants 09: missing files, functions and Django are named."""
    estate.add_schemas(2)
    three_versions(estate)
    (estate.folder / "002_total.down.sql").unlink()
    estate.upgrade()
    with pytest.raises(FailedPreconditionError, match=r"nothing undoes 002_total.up.sql"):
        estate.upgrade(to="001", downgrade=True)
    assert estate.upgrade(to="002", downgrade=True).state is RunState.DONE
    estate.write("002_total.down.sql", "-- tidegate: no-transaction\nSELECT 1")
    with pytest.raises(FailedPreconditionError, match="outside a transaction"):
        estate.upgrade(to="001", downgrade=True)
    with pytest.raises(InvalidArgumentError, match="takes back the tenants that are ahead"):
        estate.upgrade(to="001", downgrade=True, verify=True)
    app, site = tmp_path / "app", tmp_path / "site"
    estate.service.sources.add("function", make_function(app, "pass"), folder=str(app))
    estate.service.sources.add("django", make_django(site), folder=str(site))
    for source, target in (("function", "1"), ("django", "head")):
        with pytest.raises(InvalidArgumentError, match="cannot be taken back"):
            estate.upgrade(source=source, to=target, downgrade=True)


def test_alembic_takes_revisions_back(estate: Estate, tmp_path: Path) -> None:
    """Situation tenants 09: Alembic's own downgrade, in each tenant."""
    estate.add_schemas(2)
    estate.service.sources.add("app", make_alembic(tmp_path / "app"))
    estate.upgrade(source="app")
    before = estate.tables("t001")
    run = estate.upgrade(source="app", to="a1", downgrade=True)
    assert run.state is RunState.DONE, estate.items(run)
    assert estate.stored("app") == {"t001": "a1", "t002": "a1"}
    with estate.connect() as connection:
        found = connection.execute("SELECT version_num FROM t002.alembic_version").fetchall()
    assert found == [("a1",)]
    assert estate.upgrade(source="app").state is RunState.DONE
    assert estate.tables("t001") == before
