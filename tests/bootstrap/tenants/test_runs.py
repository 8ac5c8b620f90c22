"""Runs over real schemas: what is upgraded, retried, stopped, and what stays untouched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fix_tenants import ORDERS
from tidegate.bootstrap.tenants.model import ItemState, RunState

if TYPE_CHECKING:
    from fix_tenants import Estate

pytestmark = [pytest.mark.servers]


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
