"""Many tables in one workflow: leases are renewed beside a load, and nobody takes it back."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from fix_databases import wait_until
from fix_fleet import move_tables
from make_many import RenewalWatch, busy_processors, make_tables
from make_workflow import workflow
from tidegate.cluster.database import ClusterDatabase
from tidegate.engines.postgres.table_applier import STAGED_TABLES_MAX
from tidegate.errors import ConflictError
from tidegate.workflow import create, traffic
from tidegate.workflow.requests import CancelRequest
from tidegate.workflow.work import Locks, workflow_lease

if TYPE_CHECKING:
    from fix_fleet import Fleet
    from tidegate.operations.plan import PlanStep

pytestmark = pytest.mark.servers

TABLES = 60
GAP_MAX_S = 3.0
LEASE = workflow_lease("shop", "move")


@pytest.mark.alone
@pytest.mark.slow
def test_a_lease_is_renewed_in_time_beside_a_load_and_many_tables(moving: Fleet) -> None:
    """Situation 11: with fewer tables; all 1,160 in the soak test."""
    tables = make_tables(moving.shards["commerce", "0"], TABLES)
    with ClusterDatabase.open(moving.url) as database, busy_processors(15):
        with RenewalWatch(database, LEASE) as watch:
            moving.service.create(move_tables(tables=tables, auto_start=False))
            moving.service.cancel(CancelRequest(keyspace="shop", workflow="move"))
        assert watch.renewals
        assert watch.longest_s < GAP_MAX_S
    assert moving.own_objects() == {}


def test_recovery_leaves_alone_what_its_own_process_still_does(
    moving: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Situation 11: the lease has expired, and its thread goes on."""
    going, go_on = threading.Event(), threading.Event()
    real = create.CreateActions.do

    def slowly(actions: create.CreateActions, step: PlanStep) -> None:
        real(actions, step)
        if step.name == create.STREAMS_MADE:
            going.set()
            assert go_on.wait(30)

    monkeypatch.setattr(create.CreateActions, "do", slowly)
    failed: list[Exception] = []

    def create_it() -> None:
        try:
            moving.service.create(move_tables(auto_start=False))
        except Exception as error:  # noqa: BLE001 - looked at below
            failed.append(error)

    creating = threading.Thread(target=create_it)
    creating.start()
    assert going.wait(30)
    with moving.database.transaction() as connection:  # as if it had not been renewed in time
        connection.exec_driver_sql("UPDATE lease SET expires_at_ms = 0, holder = NULL")
    assert moving.service.recover() == {}
    with (
        pytest.raises(ConflictError, match="in use by another request on this node"),
        Locks(moving.service._cluster, LEASE, wait_s=0.0),
    ):
        pass
    go_on.set()
    creating.join(60)
    assert not creating.is_alive()
    assert failed, "the lease was lost, so the creation does not go on under it"
    moving.service.recover()
    assert moving.service.list() == []
    assert moving.own_objects() == {}


@pytest.mark.alone
def test_the_topology_of_a_thousand_tables_is_changed_without_keeping_others_waiting(
    moving: Fleet,
) -> None:
    """Situation 11: nine thousand rules in one transaction, which every other writer waits for."""
    names = tuple(f"many_{n}" for n in range(1000))
    flow = workflow(tables=names, added_vschema=names)
    held: list[float] = []
    began = 0.0

    def guard(_connection: object) -> None:
        nonlocal began
        began = time.monotonic()

    for change in (
        lambda found: traffic.with_initial_rules(found, flow),
        lambda found: traffic.with_writes_switched(found, flow, to_target=True),
        lambda found: traffic.without_traces(found, flow),
    ):
        moving.topology.update(change, guard=guard)
        held.append(time.monotonic() - began)
    assert max(held) < 1.0


@pytest.mark.slow
def test_a_stream_of_many_tables_keeps_few_temporary_tables(moving: Fleet) -> None:
    """Situation 11, a relative: each COMMIT empties every temporary table of the session."""
    tables = make_tables(moving.shards["commerce", "0"], STAGED_TABLES_MAX + 6)
    moving.service.create(move_tables(tables=tables))
    moving.start_workers()
    moving.wait_running("shop", "move")
    assert staged(moving) == 0, "a stream that has nothing to apply has no temporary tables"
    with moving.shards["commerce", "0"].admin() as session:
        for table in tables:
            session.execute(f"UPDATE public.{table} SET v = 2")
        session.execute("UPDATE public.many_1 SET v = 3")
    changed = "SELECT sum(v) FROM (SELECT v FROM public.{}) AS t"
    union = " UNION ALL SELECT v FROM public.".join(tables)
    wait_until(
        lambda: moving.query("shop", "0", changed.format(union)) == [(2 * len(tables) + 1,)], 30
    )
    wait_until(lambda: 0 < staged(moving) <= STAGED_TABLES_MAX)


def test_a_dry_run_and_a_creation_send_no_statement_for_each_table(
    moving: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Situation 11: statements are sent for a database, or for many tables at a time."""
    tables = make_tables(moving.shards["commerce", "0"], 40)
    sent = 0
    execute = psycopg.Connection.execute

    def counting(connection: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal sent
        sent += 1
        return execute(connection, *arguments, **options)

    monkeypatch.setattr(psycopg.Connection, "execute", counting)
    counts = []
    for few in (tables[:4], tables):
        sent = 0
        moving.service.create(move_tables(tables=few), dry_run=True)
        moving.service.create(move_tables(tables=few, auto_start=False))
        counts.append(sent)
        moving.service.cancel(CancelRequest(keyspace="shop", workflow="move"))
    assert counts[1] - counts[0] < len(tables) // 2, counts


def staged(fleet: Fleet) -> int:
    """How many tables have a temporary table for their rows at the target."""
    ((found,),) = fleet.query(
        "shop",
        "0",
        "SELECT count(*) FROM pg_class WHERE relpersistence = 't' AND relkind = 'r'"
        " AND relname LIKE 'tidegate\\_row\\_%'",
    )
    return int(found)
