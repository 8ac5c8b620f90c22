"""New tenants: found when a run begins, or made, registered and upgraded by one call."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg
import pytest

from fix_tenants import ORDERS
from tidegate.bootstrap.tenants.faults import MigrationSourceError
from tidegate.bootstrap.tenants.model import ItemState, RunState
from tidegate.bootstrap.tenants.provisioning import Discovery
from tidegate.bootstrap.tenants.selection import Selection
from tidegate.errors import AlreadyExistsError, InvalidArgumentError, TenantUpgradeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_tenants import Estate
    from tidegate.engines.postgres.local import LocalServer

pytestmark = [pytest.mark.servers, pytest.mark.slow]


def test_a_run_finds_schemas_and_databases_that_are_new(
    estate: Estate, new_database: Callable[[LocalServer], str]
) -> None:
    """Situation tenants 12: discovery as part of the run; a dry run registers nothing."""
    estate.write("001_orders.sql", ORDERS)
    estate.add_schemas(1)
    with estate.connect() as connection:
        connection.execute('CREATE SCHEMA "t new"; CREATE SCHEMA other')
    asked = replace(
        estate.request(), selection=Selection(keyspace="saas"), discovery=Discovery("t%")
    )
    planned = estate.service.plan(asked)
    assert [item.name for item in planned.items] == ["t001", "t~20new"]
    assert [tenant.name for tenant in estate.service.tenants.all()] == ["t001"]
    run = estate.work(estate.service.upgrade(asked))
    assert run.state is RunState.DONE
    assert estate.in_state(run, ItemState.DONE) == ["t001", "t~20new"]
    databases = [new_database(estate.server) for _ in range(2)]
    for database in databases:
        run = estate.work(
            estate.service.upgrade(replace(asked, discovery=Discovery(databases=database)))
        )
        assert estate.in_state(run, ItemState.DONE) == [database]
    assert estate.service.upgrade(asked).at_target == 4


def test_what_cannot_be_run_registers_nothing(estate: Estate) -> None:
    """Situation tenants 12: a refused run leaves no tenant behind."""
    estate.write("001_orders.sql", "SELECT 'open")
    estate.add_schemas(2, register=False)
    asked = replace(
        estate.request(), selection=Selection(keyspace="saas"), discovery=Discovery("t%")
    )
    with pytest.raises(MigrationSourceError, match="cannot be run"):
        estate.service.upgrade(asked)
    estate.write("001_orders.sql", ORDERS)
    nowhere = replace(asked, selection=Selection())
    with pytest.raises(InvalidArgumentError, match="of a keyspace"):
        estate.service.upgrade(nowhere)
    assert estate.service.tenants.all() == []


def test_a_tenant_is_made_registered_and_upgraded_by_one_call(estate: Estate) -> None:
    """Situation tenants 12: a hook for new tenants, schema or database, that may be repeated."""
    estate.write("001_orders.sql", ORDERS)
    estate.service.sources.add("app", estate.source)
    registry = estate.service.registry
    schema = registry.place(keyspace="saas", schema="new one")
    database = registry.place(keyspace="saas", database=f"{estate.name}_new")
    try:
        for name, place in (("acme", schema), ("globex", database)):
            for _ in range(2):
                tenant, version = estate.service.provision(name, place, None)
                assert (tenant.name, tenant.place, version) == (name, place, "001")
        assert "orders" in estate.tables("new one")
        with psycopg.connect(
            estate.server.conninfo(database.database), password=estate.server.password
        ) as connection:
            assert connection.execute("SELECT count(*) FROM orders").fetchone() == (0,)
        for name, place in (("acme", database), ("other", schema)):
            with pytest.raises(AlreadyExistsError):
                estate.service.provision(name, place, None)
        # A migration that fails leaves a tenant that the next call brings on.
        estate.write("002_wrong.sql", "SELECT no_such();")
        third = registry.place(keyspace="saas", schema="third")
        with pytest.raises(TenantUpgradeError, match="no_such"):
            estate.service.provision("third", third, None)
        estate.write("002_wrong.sql", "SELECT 1;")
        assert estate.service.provision("third", third, None)[1] == "002"
    finally:
        with estate.connect() as connection:
            connection.execute(
                f'DROP DATABASE IF EXISTS "{database.database}" WITH (FORCE)'.encode()
            )
