"""Workflow records change by compare-and-swap only, under leases that still hold."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from make_workflow import workflow
from tidegate.cluster import updates
from tidegate.cluster.leases import Leases
from tidegate.cluster.schema import Schema
from tidegate.errors import AlreadyExistsError, ConflictError, LeaseLostError, NotFoundError
from tidegate.workflow.store import UPDATES, StepEvent, WorkflowStore

if TYPE_CHECKING:
    from tidegate.cluster.database import ClusterDatabase


@pytest.fixture
def database(cluster_database: ClusterDatabase) -> ClusterDatabase:
    """On each engine."""
    Schema((*updates.UPDATES, *UPDATES)).ensure(cluster_database)
    return cluster_database


def test_two_changes_of_one_version_cannot_both_win(database: ClusterDatabase) -> None:
    store = WorkflowStore(database)
    read = store.insert(workflow())
    after = store.save(replace(read, generation=1))
    with pytest.raises(ConflictError):
        store.save(replace(read, generation=2))
    with pytest.raises(ConflictError):
        store.delete(read)
    assert store.get("shop", "move") == after
    store.delete(after)
    assert store.all() == []
    with pytest.raises(NotFoundError):
        store.get("shop", "move")


def test_a_name_is_taken_in_its_target_keyspace(database: ClusterDatabase) -> None:
    store = WorkflowStore(database)
    store.insert(workflow())
    with pytest.raises(AlreadyExistsError):
        store.insert(workflow(uuid="another"))
    store.insert(workflow(uuid="another", target_keyspace="elsewhere"))
    assert [w.key for w in store.all()] == ["elsewhere.move", "shop.move"]


def test_nothing_is_written_under_a_lost_lease(database: ClusterDatabase) -> None:
    store, leases = WorkflowStore(database), Leases(database)
    read = store.insert(workflow())
    lease = leases.acquire("workflow/shop/move", "me", 60)
    leases.release(lease)
    with pytest.raises(LeaseLostError):
        store.save(replace(read, generation=1), [lease])
    with pytest.raises(LeaseLostError):
        store.delete(read, [lease])
    assert store.get("shop", "move") == read


def test_the_history_outlives_the_workflow(database: ClusterDatabase) -> None:
    store = WorkflowStore(database)
    flow = store.insert(workflow())
    store.log(flow, [StepEvent(1, "create", "create.a", "done", 1.5)])
    store.log(flow, [])
    store.log(flow, [StepEvent(1, "create", "create.b", "undone", 2.5)])
    store.delete(flow)
    found = store.history(flow.uuid)
    assert [(e.step, e.event, e.took_ms) for e in found] == [
        ("create.a", "done", 1.5),
        ("create.b", "undone", 2.5),
    ]
    assert all(e.at is not None for e in found)
