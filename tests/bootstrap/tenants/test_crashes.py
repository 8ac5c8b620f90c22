"""The process is killed at every durable step of a run; the next one ends it, and nothing twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fix_tenants import ORDERS
from tidegate import steps
from tidegate.bootstrap.tenants import loop
from tidegate.bootstrap.tenants.hands import COMMITTED
from tidegate.bootstrap.tenants.model import ItemState, RunState
from tidegate.bootstrap.tenants.service import CREATED
from tidegate.cluster.leases import Leases
from tidegate.engines.postgres import tenant_alone
from tidegate.errors import ConflictError

if TYPE_CHECKING:
    from fix_tenants import Estate

pytestmark = [pytest.mark.servers, pytest.mark.slow]

#: The first occurrence of each, and a later one where there are several.
KILLS = (
    CREATED,
    loop.CLAIMED,
    COMMITTED,
    f"{COMMITTED}#4",
    loop.STORED,
    f"{loop.STORED}#3",
    loop.WAVE_OPENED,
    loop.ENDED,
)


def release_the_dead(estate: Estate) -> None:
    """As a node does that starts again on the same machine: it knows that the other one is dead."""
    leases = Leases(estate.database)
    for row in leases.holders():
        assert row.holder is not None
        leases.release_holder(row.holder)


def test_every_step_is_killed_somewhere() -> None:
    declared = {step.name for step in steps.declared() if step.plan == "tenant"}
    elsewhere = {loop.SWEPT, tenant_alone.BEGUN, tenant_alone.RAN}
    assert declared - elsewhere == {kill.partition("#")[0] for kill in KILLS}


@pytest.mark.parametrize("step", KILLS)
def test_a_run_that_is_killed_is_ended_and_nothing_runs_twice(estate: Estate, step: str) -> None:
    names = estate.add_schemas(6)
    # Not repeatable: run twice for a tenant, it fails.
    estate.write("001_orders.sql", ORDERS + "INSERT INTO orders VALUES (1, 'once');")
    estate.die_at(None, step, wave="canary:2", then="2", jobs=1)
    release_the_dead(estate)
    (run,) = estate.service.runs.all()
    if run.state is RunState.RUNNING:
        run = estate.work(run)
    assert run.state is RunState.DONE
    assert estate.in_state(run, ItemState.DONE) == names
    with estate.connect() as connection:
        for name in names:
            assert connection.execute(f"SELECT count(*) FROM {name}.orders").fetchone() == (1,)
    assert set(estate.stored().values()) == {"001"}
    again = estate.upgrade()
    assert (again.state, again.at_target) == (RunState.DONE, 6)


def test_a_tenant_added_meanwhile_survives_a_kill_after_the_sweep(estate: Estate) -> None:
    names = estate.add_schemas(3, register=False)
    estate.write("001_orders.sql", ORDERS)
    estate.service.registry.discover("saas", schemas="t001", register=True)
    run = estate.service.upgrade(estate.request())
    estate.service.registry.discover("saas", schemas="t%", register=True)
    estate.die_at(run, loop.SWEPT)
    release_the_dead(estate)
    run = estate.work(run)
    assert run.state is RunState.DONE
    assert estate.in_state(run, ItemState.DONE) == names
    assert run.waves == 2


def test_two_never_work_on_one_run(estate: Estate) -> None:
    estate.add_schemas(1)
    estate.write("001_orders.sql", ORDERS)
    run = estate.service.upgrade(estate.request())
    leases = Leases(estate.database)
    held = leases.acquire(f"tenant-run/{run.id}", "another node", 60)
    with pytest.raises(ConflictError, match="another node"):
        estate.work(run)
    leases.release(held)
    assert estate.work(run).state is RunState.DONE
