"""The topology's store: compare-and-swap, validation, watching, races between processes."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from fix_forked import TEXT, Spoken
from tidegate.cluster import updates
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.leases import Leases
from tidegate.cluster.schema import Schema
from tidegate.errors import ConflictError, InvalidArgumentError, LeaseLostError
from tidegate.topology import store as store_module
from tidegate.topology.model import Snapshot
from tidegate.topology.records import Cell, Keyspace, Shard, Tablet, TabletType
from tidegate.topology.rules import RoutingRules
from tidegate.topology.store import TopologyStore
from tidegate.topology.vschema import VSchema

SCHEMA = Schema((*updates.UPDATES, *store_module.UPDATES))


@pytest.fixture
def database(cluster_database: ClusterDatabase) -> ClusterDatabase:
    """On each engine."""
    SCHEMA.ensure(cluster_database)
    return cluster_database


@pytest.fixture
def store(database: ClusterDatabase) -> TopologyStore:
    return TopologyStore(database)


def with_commerce(snapshot: Snapshot) -> Snapshot:
    return (
        snapshot.with_cell(Cell("zone1"))
        .with_keyspace(Keyspace("commerce"))
        .with_shard(Shard("commerce", "0"))
        .with_tablet(
            Tablet("zone1-100", "commerce", "0", frozenset({TabletType.PRIMARY}), "host=x", "env:P")
        )
        .with_vschema("commerce", VSchema())
        .with_routing_rules(RoutingRules().with_rule("orders", "commerce.orders"))
    )


def versions(database: ClusterDatabase) -> dict[tuple[str, str], int]:
    with database.read() as connection:
        rows = connection.exec_driver_sql("SELECT kind, name, version FROM topology_object")
        return {(kind, name): version for kind, name, version in rows}


def test_what_was_committed_is_what_is_read(store: TopologyStore) -> None:
    assert store.read() == Snapshot()
    committed = store.update(with_commerce)
    assert committed.revision == 1
    assert store.read() == committed
    assert store.read().tablet("zone1-100").secret == "env:P"


def test_only_what_differs_is_written(store: TopologyStore, database: ClusterDatabase) -> None:
    store.update(with_commerce)
    store.update(lambda s: s.with_denied_tables("commerce", ["0"], ["orders"]))
    found = versions(database)
    assert found.pop(("shard", "commerce/0")) == 2
    assert set(found.values()) == {1}
    store.update(lambda s: s.with_routing_rules(RoutingRules()).without_tablet("zone1-100"))
    assert not {("routing_rule", "orders"), ("tablet", "zone1-100")} & set(versions(database))


def test_a_change_of_nothing_has_no_revision(store: TopologyStore) -> None:
    store.update(with_commerce)
    assert store.update(with_commerce).revision == 1
    assert store.update(lambda s: s).revision == 1


def test_a_wrong_topology_is_refused_and_changes_nothing(store: TopologyStore) -> None:
    before = store.update(with_commerce)
    with pytest.raises(InvalidArgumentError, match="its cell zone9 does not exist"):
        store.update(
            lambda s: s.with_tablet(
                Tablet("zone9-1", "commerce", "0", frozenset({TabletType.REPLICA}), "host=x")
            )
        )
    with pytest.raises(InvalidArgumentError, match="the keyspace of its target"):
        store.check(lambda s: s.with_routing_rules(s.routing_rules.with_rule("t", "nowhere.t")))
    assert store.read() == before


def test_an_error_that_is_there_already_does_not_stop_other_changes(
    store: TopologyStore, database: ClusterDatabase
) -> None:
    store.update(with_commerce)
    with database.transaction() as connection:
        connection.exec_driver_sql("DELETE FROM topology_object WHERE kind = 'cell'")
        connection.exec_driver_sql("UPDATE topology_revision SET revision = revision + 1")
    assert store.update(lambda s: s.with_keyspace(Keyspace("mending"))).revision == 3


def test_what_a_change_raises_reaches_the_caller(store: TopologyStore) -> None:
    def fail(_snapshot: Snapshot) -> Snapshot:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.update(fail)
    assert store.read().revision == 0


def test_who_loses_applies_the_change_to_what_the_winner_left(store: TopologyStore) -> None:
    calls = 0

    def change(snapshot: Snapshot) -> Snapshot:
        nonlocal calls
        calls += 1
        if calls == 1:
            store.update(with_commerce)
        return snapshot.with_keyspace(Keyspace(f"seen{len(snapshot.keyspaces)}"))

    assert set(store.update(change).keyspaces) == {"commerce", "seen1"}
    assert calls == 2


def test_who_always_loses_is_told_so(store: TopologyStore) -> None:
    def change(snapshot: Snapshot) -> Snapshot:
        store.update(lambda s: s.with_keyspace(Keyspace(f"k{s.revision}")))
        return snapshot.with_keyspace(Keyspace("mine"))

    with pytest.raises(ConflictError, match="in each of 3 attempts") as caught:
        store.update(change, attempts=3)
    assert caught.value.retryable
    assert set(store.read().keyspaces) == {"k0", "k1", "k2"}


def test_two_changes_that_are_right_alone_and_wrong_together_do_not_both_commit(
    store: TopologyStore,
) -> None:
    """One removes a keyspace, the other adds a rule that leads to it: no object in common."""
    store.update(lambda s: s.with_keyspace(Keyspace("commerce")))
    calls = 0

    def add_rule(snapshot: Snapshot) -> Snapshot:
        nonlocal calls
        calls += 1
        if calls == 1:
            store.update(lambda s: s.without_keyspace("commerce"))
        return snapshot.with_routing_rules(RoutingRules().with_rule("orders", "commerce.orders"))

    with pytest.raises(InvalidArgumentError):
        store.update(add_rule)
    assert len(store.read().routing_rules) == 0


def test_a_change_under_a_lost_lease_does_not_commit(
    store: TopologyStore, database: ClusterDatabase
) -> None:
    leases = Leases(database)
    lease = leases.acquire("keyspace/commerce", "node-1", 30)
    store.update(with_commerce, guard=lambda connection: leases.check(connection, lease))
    leases.release(lease)
    with pytest.raises(LeaseLostError):
        store.update(
            lambda s: s.without_cell("zone1").without_tablet("zone1-100"),
            guard=lambda connection: leases.check(connection, lease),
        )
    assert store.read().revision == 1
    with pytest.raises(LeaseLostError):
        store.update(lambda s: s, guard=lambda connection: leases.check(connection, lease))


@pytest.mark.alone
def test_a_waiting_thread_is_woken_by_a_change_of_its_own_process(
    store: TopologyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "POLL_S", 10.0)  # so that nothing else can wake it
    with ThreadPoolExecutor(20) as pool:
        waiting = [pool.submit(store.wait_for_change, 0, 20) for _ in range(20)]
        store.update(with_commerce)
        started = time.monotonic()
        assert [future.result() for future in waiting] == [1] * 20
        assert time.monotonic() - started < 1


@pytest.mark.alone
def test_a_wait_ends_without_a_change(store: TopologyStore) -> None:
    started = time.monotonic()
    assert store.wait_for_change(0, 0.1) == 0
    assert 0.1 <= time.monotonic() - started < 2
    assert store.wait_for_change(-1, 10) == 0


@pytest.mark.alone
def test_a_change_of_another_process_is_seen_within_100_ms(
    store: TopologyStore, cluster_url: str
) -> None:
    with ClusterDatabase.open(cluster_url) as other_database:
        other = TopologyStore(other_database)
        delays: list[float] = []
        for revision in range(10):
            started = threading.Event()
            seen: list[tuple[int, float]] = []

            def wait(
                revision: int = revision,
                started: threading.Event = started,
                seen: list[tuple[int, float]] = seen,
            ) -> None:
                started.set()
                seen.append((store.wait_for_change(revision, 20), time.monotonic()))

            threads = [threading.Thread(target=wait) for _ in range(3)]
            for thread in threads:
                thread.start()
            started.wait()
            other.update(lambda s: s.with_keyspace(Keyspace(f"k{s.revision}")))
            committed_at = time.monotonic()
            for thread in threads:
                thread.join()
            assert {found for found, _ in seen} == {revision + 1}
            delays.append(max(at for _, at in seen) - committed_at)
    assert sorted(delays)[len(delays) // 2] < 0.1, delays


def test_thirty_objects_changed_by_eight_threads_lose_no_change(store: TopologyStore) -> None:
    def work(number: int) -> None:
        for n in range(8):
            keyspace = Keyspace(f"k{number}-{n}")
            store.update(partial(Snapshot.with_keyspace, keyspace=keyspace), attempts=200)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    snapshot = store.read()
    assert len(snapshot.keyspaces) == snapshot.revision == 64


INCREMENTER = """
import sys
from tidegate.cluster.database import ClusterDatabase
from tidegate.topology.records import Shard
from tidegate.topology.store import TopologyStore
store = TopologyStore(ClusterDatabase.open(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()

def add_one(snapshot):
    denied = snapshot.shard("commerce", "0").denied_tables
    return snapshot.with_denied_tables("commerce", ["0"], [f"t{len(denied)}"])

for _ in range(25):
    store.update(add_one, attempts=1000)
"""


@pytest.mark.slow
def test_eight_processes_that_count_up_one_object_lose_no_update(
    store: TopologyStore, cluster_url: str
) -> None:
    store.update(with_commerce)
    workers = [Spoken(TEXT, [INCREMENTER, cluster_url]) for _ in range(8)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate(timeout=120)
        assert worker.returncode == 0
    snapshot = store.read()
    assert snapshot.revision == 201
    assert len(snapshot.shard("commerce", "0").denied_tables) == 200
