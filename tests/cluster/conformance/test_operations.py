"""Every engine: operations are stored with their tasks, changed one by one, and found by key."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from make_operations import SCHEMA, container, key_of, operation
from tidegate.cluster.audit import Audit
from tidegate.cluster.leases import Leases
from tidegate.cluster.schema import Schema
from tidegate.errors import IdempotencyKeyError, LeaseLostError
from tidegate.operations import decisions
from tidegate.operations.decisions import Attempt
from tidegate.operations.history import Asked, History
from tidegate.operations.ids import IDGenerator
from tidegate.operations.model import ClusterOperation, OperationState
from tidegate.operations.store import OperationStore

if TYPE_CHECKING:
    from tidegate.cluster.database import ClusterDatabase


@pytest.fixture
def store(cluster_database: ClusterDatabase) -> OperationStore:
    Schema(SCHEMA).ensure(cluster_database)
    return OperationStore(cluster_database, History(Audit(cluster_database)))


def added(store: OperationStore, *, key: str | None = None, request: str = "r") -> ClusterOperation:
    made = operation(container("a", "b"), container("c"), id=IDGenerator().next_id())
    return store.insert(replace(made, parameters={"x": "ä '\" %s"}), key=key, request=request)


def started(found: ClusterOperation) -> ClusterOperation:
    return decisions.advanced(found, 1, 32)


def test_what_is_stored_comes_back_as_it_was(store: OperationStore) -> None:
    made = added(store)
    assert store.get(made.id) == made
    after = store.update(made.id, started, lines=[("1/1", "said")])
    assert store.get(made.id) == after
    assert after.version == made.version + 1
    lines = store.log(made.id, after=made.last_seq, limit=100)
    assert (lines[0].task, lines[0].line) == ("1/1", "said")
    assert [line.seq for line in lines] == list(range(made.last_seq + 1, after.last_seq + 1))


def test_a_success_and_what_it_emits_are_one_change(store: OperationStore) -> None:
    made = added(store)
    found = store.update(made.id, started)
    attempt = Attempt(key_of(found, "a"), 1)
    emitted = (container("d"), container("e", concurrency=3))
    after = store.update(
        made.id, lambda each: decisions.succeeded(each, attempt, "done", emitted, 2)
    )
    assert store.get(made.id) == after
    assert [task.name for _, task in after.tasks()] == ["a", "b", "d", "e", "c"]


def test_nothing_is_changed_under_a_lease_that_is_lost(
    store: OperationStore, cluster_database: ClusterDatabase
) -> None:
    made, leases = added(store), Leases(cluster_database)
    lease = leases.acquire("operation/x", "one", 30)
    assert store.update(made.id, started, lease=lease).state is OperationState.RUNNING
    leases.release(lease)
    leases.acquire("operation/x", "two", 30)
    before = store.get(made.id)
    with pytest.raises(LeaseLostError):
        store.update(made.id, lambda each: replace(each, why="late"), lease=lease)
    assert store.get(made.id) == before


def test_changes_of_many_at_once_are_all_kept(
    store: OperationStore, cluster_database: ClusterDatabase
) -> None:
    """automation 16: in one chain, whoever writes at the same moment."""
    made = added(store)

    def more(found: ClusterOperation) -> ClusterOperation:
        return replace(found, recoveries=found.recoveries + 1)

    with ThreadPoolExecutor(4) as pool:
        asked = Asked("more", "ada")
        list(pool.map(lambda _: store.update(made.id, more, asked=asked), range(12)))
    after = store.get(made.id)
    assert after.recoveries == 12
    lines = store.log(made.id, after=0, limit=100)
    assert [line.seq for line in lines] == list(range(1, 14))
    verdict = Audit(cluster_database).verify()
    assert (verdict.why, verdict.entries) == (None, 13)


def test_one_key_is_one_operation_also_at_the_same_moment(store: OperationStore) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: added(store, key="k"), range(8)))
    assert len({each.id for each in found}) == 1
    with pytest.raises(IdempotencyKeyError):
        added(store, key="k", request="another")
    assert len(store.page(states=[], name=None, before=None, limit=10)) == 1


def test_what_can_be_gone_on_with_is_found_and_nothing_else(store: OperationStore) -> None:
    queued, under_way, paused, ended = (added(store) for _ in range(4))
    store.update(under_way.id, started)
    store.update(paused.id, lambda each: each.moved(OperationState.PAUSED))
    store.update(ended.id, lambda each: each.moved(OperationState.CANCELLED))
    assert [each.id for each in store.to_do(10)] == sorted([queued.id, under_way.id])
    assert [each.id for each in store.to_do(1)] == [min(queued.id, under_way.id)]
    assert [(each.id, each.parameters) for each in store.under_way()] == [
        (under_way.id, queued.parameters)
    ]
