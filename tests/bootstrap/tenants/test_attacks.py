"""Several at once in one tenant, and tenants that vanish under a run."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from fix_databases import wait_until
from fix_tenants import ORDERS
from tidegate.bootstrap.tenants.faults import TenantBusyError
from tidegate.bootstrap.tenants.model import ItemState, RunOptions, RunState
from tidegate.bootstrap.tenants.service import TenantService
from tidegate.errors import NotFoundError
from tidegate.topology.store import TopologyStore

if TYPE_CHECKING:
    from pathlib import Path

    from fix_tenants import Estate

pytestmark = [pytest.mark.servers, pytest.mark.slow]


def test_two_nodes_and_two_sources_at_once_run_each_file_once(
    estate: Estate, tmp_path: Path
) -> None:
    """Situations tenants 02, 03 and 05: many logins, two nodes, two sources, one tenant."""
    names = estate.add_schemas(3)
    folders = {"shop": estate.folder, "bill": tmp_path / "bill"}
    folders["bill"].mkdir()
    for source, folder in folders.items():
        for number in range(1, 6):
            text = f"CREATE TABLE {source}_{number} (); SELECT pg_sleep(0.01);"
            (folder / f"00{number}_t.sql").write_text(text)
        (folder / "006_i.sql").write_text(
            f"ALTER TABLE {source}_1 ADD COLUMN c int; ALTER TABLE {source}_1 ADD UNIQUE (c);"
        )
        (folder / "007_i.sql").write_text(
            f"CREATE INDEX CONCURRENTLY {source}_i ON {source}_1 (c);"
        )
        estate.service.sources.add(source, f"sql:{folder}")
    nodes = [estate.service, TenantService(estate.database, TopologyStore(estate.database))]
    options = RunOptions(lock_timeout_s=30)
    asked = [(node, name, source) for name in names for source in folders for node in nodes] * 2

    def login(what: tuple[TenantService, str, str]) -> tuple[bool, str]:
        node, name, source = what
        for _ in range(20):
            try:
                return node.ensure(name, source, options)
            except TenantBusyError:
                time.sleep(0.1)
        raise AssertionError(what)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(login, asked))
    assert {version for _, version in answers} == {"007"}
    for name in names:
        made = [f"{source}_{number}" for source in folders for number in range(1, 6)]
        assert estate.tables(name) == sorted([*made, "tidegate_migration"])
        assert sorted(estate.recorded(name)) == sorted([f"00{n}" for n in range(1, 8)] * 2)


def test_a_tenant_that_is_dropped_in_the_middle_is_missing_and_not_failed(estate: Estate) -> None:
    """Situation tenants 02, a relative: the schema goes between two files."""
    estate.add_schemas(2)
    estate.write("001_orders.sql", ORDERS)
    estate.write("002_gone.sql", "CREATE TABLE gone (); SELECT pg_advisory_xact_lock(2);")
    estate.write("003_last.sql", "CREATE TABLE last ();")
    run = estate.service.upgrade(estate.request(tenants=("t001",), jobs=1))
    worker = threading.Thread(target=estate.work, args=[run])

    def drop() -> None:
        with estate.connect() as connection:
            connection.execute("DROP SCHEMA t001 CASCADE")

    waits = (
        "SELECT 1 FROM pg_locks JOIN pg_database ON pg_database.oid = database"
        " WHERE datname = current_database() AND NOT granted AND locktype = %s"
    )
    dropping = threading.Thread(target=drop)
    with estate.connect() as connection:
        connection.execute("SELECT pg_advisory_lock(2)")
        worker.start()
        wait_until(lambda: connection.execute(waits, ["advisory"]).fetchone() is not None)
        dropping.start()
        wait_until(lambda: connection.execute(waits, ["object"]).fetchone() is not None)
        connection.execute("SELECT pg_advisory_unlock(2)")
    for each in (dropping, worker):
        each.join(30)
    assert estate.states(run) == {"t001": ItemState.SKIPPED}
    with pytest.raises(NotFoundError):
        estate.service.ensure("t001", estate.source)
    assert estate.upgrade(tenants=("t002",)).state is RunState.DONE
