"""The registry, sources and runs on each engine of the cluster database."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from fix_tenants import UPDATES
from tidegate.bootstrap.tenants.model import (
    Item,
    ItemState,
    Place,
    Run,
    RunOptions,
    RunState,
    Source,
    SourceKind,
    Tenant,
    Wish,
)
from tidegate.bootstrap.tenants.runs import Progress, RunStore
from tidegate.bootstrap.tenants.store import TenantStore
from tidegate.bootstrap.tenants.versions import Chain, Version
from tidegate.cluster.leases import Leases
from tidegate.cluster.schema import Schema
from tidegate.errors import AlreadyExistsError, ConflictError, LeaseLostError, NotFoundError

if TYPE_CHECKING:
    from tidegate.cluster.database import ClusterDatabase

pytestmark = [pytest.mark.servers]

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SOURCE = Source("app", SourceKind.SQL, "/sql")
NAMES = [f"t{number:04d}" for number in range(600)]  # more than one statement takes


@pytest.fixture
def database(cluster_database: ClusterDatabase) -> ClusterDatabase:
    Schema(UPDATES).ensure(cluster_database)
    return cluster_database


def tenants() -> list[Tenant]:
    return [Tenant(f"id-{name}", name, Place("saas", "0", schema=name), NOW) for name in NAMES]


def run_of(*names: str, state: RunState = RunState.RUNNING) -> tuple[Run, list[Item]]:
    items = [Item(f"id-{name}", name, 0, number) for number, name in enumerate(names)]
    run = Run(0, SOURCE, "001", state, RunOptions(), selection={"tenants": []}, at_target=3)
    return run, items


def test_the_registry(database: ClusterDatabase) -> None:
    store = TenantStore(database)
    store.add(tenants())
    assert [each.name for each in store.all()] == NAMES
    assert [each.name for each in store.page(after=NAMES[9], limit=2)] == NAMES[10:12]
    first = store.get(NAMES[0])
    taken_place = replace(first, id="other", name="other")
    for taken in (taken_place, replace(taken_place, name=NAMES[1], place=Place("x", "0", "", "d"))):
        with pytest.raises(AlreadyExistsError):
            store.add([taken])
    renamed = store.rename(first, "acme")
    with pytest.raises(ConflictError):
        store.rename(first, "stale")
    with pytest.raises(AlreadyExistsError):
        store.rename(renamed, NAMES[1])
    store.store_version(first.id, "app", "001")
    store.store_version(first.id, "app", "002")
    assert store.get("acme").versions == {"app": "002"}
    assert store.histogram("app") == {"002": 1, "": len(NAMES) - 1}
    assert len(store.by_ids([each.id for each in tenants()])) == len(NAMES)
    store.remove(renamed)
    with pytest.raises(NotFoundError):
        store.get("acme")


def test_migration_sources(database: ClusterDatabase) -> None:
    store = TenantStore(database)
    store.add_source(SOURCE)
    with pytest.raises(AlreadyExistsError):
        store.add_source(SOURCE)
    assert store.sources() == [SOURCE]
    store.remove_source("app")
    with pytest.raises(NotFoundError):
        store.remove_source("app")


def test_a_run_is_claimed_worked_on_under_its_lease_and_ended(database: ClusterDatabase) -> None:
    runs, store, leases = RunStore(database), TenantStore(database), Leases(database)
    store.add(tenants())
    run = runs.create(*run_of(*NAMES))
    assert (run.id, run.at_target) == (1, 3)
    assert runs.get(None) == runs.get(1)
    with pytest.raises(ConflictError, match="upgraded by run 1"):
        runs.create(*run_of(NAMES[-1]))
    lease = leases.acquire("tenant-run/1", "node", 60)
    items = runs.items(1)
    done = [
        (item.state, replace(item, state=ItemState.DONE, to_version="001")) for item in items[1:]
    ]
    versions = {item.tenant_id: "001" for item in items[1:]}
    runs.progress(run, lease, Progress(tuple(done), versions, {"001": "hash"}))
    assert store.recorded("app") == {"001": "hash"}
    assert store.histogram("app") == {"": 1, "001": len(NAMES) - 1}
    with pytest.raises(ConflictError):  # those items are not in that state any more
        runs.progress(run, lease, Progress(tuple(done)))
    leases.release(lease)
    with pytest.raises(LeaseLostError):
        runs.progress(run, lease, Progress(versions={items[0].tenant_id: "001"}))
    assert store.get(NAMES[0]).versions == {}
    assert runs.counts(1) == {(0, ItemState.DONE): len(NAMES) - 1, (0, ItemState.PENDING): 1}
    wished = runs.swap(run, replace(run, wish=Wish.PAUSE))
    with pytest.raises(ConflictError):
        runs.swap(run, replace(run, wish=Wish.CANCEL))
    ended = runs.swap(wished, replace(wished, state=RunState.CANCELLED))
    assert runs.get(1) == ended
    assert ended.ended_at is not None
    assert runs.create(*run_of(NAMES[-1])).id == 2


def test_a_run_that_is_over_claims_its_tenants_again_when_they_are_retried(
    database: ClusterDatabase,
) -> None:
    runs = RunStore(database)
    run = runs.create(*run_of("a", "b"))
    run = runs.swap(run, replace(run, state=RunState.PARTLY_FAILED))
    other = runs.create(*run_of("a"))
    again = replace(run, state=RunState.RUNNING)
    with pytest.raises(ConflictError, match="upgraded by run 2"):
        runs.swap(run, again)
    runs.swap(other, replace(other, state=RunState.CANCELLED))
    runs.swap(run, again)
    with pytest.raises(ConflictError, match="upgraded by run 1"):
        runs.create(*run_of("a"))


def test_what_no_tenant_has_any_more_is_forgotten(database: ClusterDatabase) -> None:
    """Situation tenants 12, a relative: each edit of a repeatable file makes another content."""
    store = TenantStore(database)
    store.add(tenants()[:2])
    chains = [Chain((Version("001"),), repeatable=(Version("R__v", "v", str(n)),)) for n in "abcd"]
    for chain in chains:
        store.store_version("id-t0000", "app", "001", chain)
    store.store_version("id-t0001", "app", "001", chains[0])
    assert store.sets("app") == {
        chains[0].digest_at("001"): {"001", "R__v a"},
        chains[3].digest_at("001"): {"001", "R__v d"},
    }
