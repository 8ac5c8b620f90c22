"""Member rows: uniqueness, compare-and-swap, heartbeats, and what an evicted row leaves free."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from tidegate.cluster import member_store
from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.extensions import Extensions
from tidegate.cluster.member_store import MemberStore
from tidegate.cluster.members import MemberState, Role
from tidegate.cluster.schema import Schema
from tidegate.errors import AlreadyExistsError, ConflictError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tidegate.cluster.members import Member


@pytest.fixture
def database(tmp_path: Path) -> Iterator[ClusterDatabase]:
    with ClusterDatabase.open(f"sqlite:///{tmp_path}/cluster.db") as opened:
        Schema(member_store.UPDATES).ensure(opened)
        yield opened


@pytest.fixture
def store(database: ClusterDatabase) -> MemberStore:
    return MemberStore(database)


def added(store: MemberStore, number: int, state: MemberState = MemberState.ACTIVE) -> Member:
    return store.add(
        name=f"node-{number}",
        address=f"10.0.0.{number}:7000",
        schema_version=3,
        extensions=Extensions.of(["a", "b"]),
        binary_version="1.2.3",
        state=state,
        role=Role.VOTER,
        fingerprint="ab" * 32,
    )


def test_a_member_is_read_as_it_was_written(store: MemberStore) -> None:
    one = added(store, 1)
    assert store.all() == [one]
    assert (store.by_name("node-1"), store.by_address("10.0.0.1:7000")) == (one, one)
    assert one.active_at == one.pending_at
    assert added(store, 2).id == one.id + 1


def test_a_name_and_an_address_belong_to_one_member(store: MemberStore) -> None:
    one = added(store, 1, MemberState.PENDING)
    for name, address in ((one.name, "other:1"), ("other", one.address)):
        with pytest.raises(AlreadyExistsError, match="pending member node-1"):
            store.add(
                name=name,
                address=address,
                schema_version=1,
                extensions=Extensions(),
                binary_version="",
            )
    two = added(store, 2)
    with pytest.raises(AlreadyExistsError, match="another member has the name node-1"):
        store.write(two, replace(two, name="node-1"))
    assert store.all() == [one, two]


def test_a_pending_member_is_seen_by_its_address_alone(store: MemberStore) -> None:
    one = added(store, 1, MemberState.PENDING)
    assert store.active() == []
    with pytest.raises(NotFoundError, match="no member of the cluster has the name"):
        store.by_name(one.name)
    assert store.pending_by_address(one.address) == one
    joined = store.activate(one)
    assert store.by_name(one.name) == joined
    assert joined.active_at is not None
    with pytest.raises(NotFoundError, match="expected to join"):
        store.pending_by_address(one.address)
    with pytest.raises(ConflictError, match="not pending"):
        store.activate(joined)


def test_who_read_an_older_row_does_not_write(store: MemberStore) -> None:
    one = added(store, 1)
    renamed = store.write(one, replace(one, name="other"))
    assert renamed.revision == one.revision + 1
    with pytest.raises(ConflictError, match="meanwhile"):
        store.write(one, replace(one, role=Role.SPARE))
    assert store.all() == [renamed]


def test_a_heartbeat_is_no_change_and_a_change_no_heartbeat(store: MemberStore) -> None:
    one, two = added(store, 1), added(store, 2)
    while store.beat([one.id]) == 1 and store.by_name("node-1").heartbeat_at == one.heartbeat_at:
        pass
    seen = store.by_name("node-1").heartbeat_at
    assert seen > one.heartbeat_at
    store.write(one, replace(one, role=Role.STANDBY, heartbeat_at=one.heartbeat_at - timedelta(1)))
    assert store.by_name("node-1").heartbeat_at == seen
    assert store.by_name("node-2") == two


def test_an_evicted_member_does_not_beat_and_leaves_its_name(store: MemberStore) -> None:
    one = added(store, 1)
    gone = store.evict(one)
    assert (gone.state, gone.evicted_at is not None) == (MemberState.EVICTED, True)
    assert store.beat([one.id]) == 0
    again = added(store, 1)
    assert again.id == one.id + 1
    with pytest.raises(ConflictError, match="was not evicted"):
        store.purge(again)
    store.purge(gone)
    assert store.all() == [again]


def test_versions_are_noted_for_one_address(database: ClusterDatabase, store: MemberStore) -> None:
    one, two = added(store, 1), added(store, 2)
    with database.transaction() as connection:
        count = member_store.record_versions(
            connection,
            one.address,
            schema_version=9,
            extensions=Extensions.of(["a"]),
            binary_version="2",
            now=one.heartbeat_at + timedelta(seconds=5),
        )
    assert count == 1
    found = store.by_name("node-1")
    assert (found.schema_version, found.extensions.names, found.binary_version) == (9, ("a",), "2")
    assert found.heartbeat_at == one.heartbeat_at + timedelta(seconds=5)
    assert store.by_name("node-2") == two
    with pytest.raises(ConflictError):
        store.evict(one)


def test_members_added_at_once_get_ids_of_their_own(store: MemberStore) -> None:
    start = threading.Barrier(6)

    def add(number: int) -> int:
        start.wait()
        return added(store, number).id

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(add, range(6))) == list(range(1, 7))
