"""Which operation begins next: by priority, then by age, within limits and around locks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from make_operations import Bench, FunctionTask
from tidegate.errors import IdempotencyKeyError, InvalidArgumentError
from tidegate.operations import claiming, runner
from tidegate.operations.claiming import Limits
from tidegate.operations.locks import OperationLock
from tidegate.operations.store import Entry
from tidegate.topology.connections import server_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.cluster.database import ClusterDatabase


def entry(name: str, *, servers: str = "", begun: bool = False, works: bool = True) -> Entry:
    return Entry(name, name[0], {}, begun, works, 0, tuple(servers))


def no_locks(_entry: Entry) -> Sequence[OperationLock]:
    return ()


def taken(queue: list[Entry], under_way: list[Entry], limits: Limits) -> list[str]:
    found = claiming.to_claim(queue, under_way, set(), no_locks, 9, limits=limits)
    return [each.id for each in found]


def test_of_one_kind_no_more_begin_than_it_allows() -> None:
    """automation 9: a cap of a kind of operation, and others pass those that wait."""
    limits = Limits({"a": 2})
    assert taken([entry("a1"), entry("a2"), entry("a3"), entry("b1")], [], limits) == [
        "a1",
        "a2",
        "b1",
    ]
    going = entry("a0", begun=True)
    assert taken([entry("a1"), entry("a2")], [going], limits) == ["a1"]
    blocked = claiming.blocked_by(entry("a2"), [going, entry("a1", begun=True)], no_locks, limits)
    assert blocked is not None
    assert "the last place for a (at most 2 at once)" in blocked[1]


def test_at_one_server_no_more_begin_than_it_may_have() -> None:
    """automation 9: two that share a server count for it, whatever their kind."""
    limits = Limits({}, per_server=1)
    queue = [entry("a1", servers="xy"), entry("b1", servers="yz"), entry("c1", servers="z")]
    assert taken(queue, [], limits) == ["a1", "c1"]
    blocked = claiming.blocked_by(queue[1], [queue[0]], no_locks, limits)
    assert blocked is not None
    assert "server y" in blocked[1]


def test_what_waits_for_a_person_leaves_its_place_and_what_has_begun_keeps_going() -> None:
    """automation 9: a gate that nobody opens stops nobody, and no two wait for each other."""
    limits = Limits({"a": 1}, per_server=1)
    gated = entry("a0", servers="x", begun=True, works=False)
    assert taken([entry("a1", servers="x")], [gated], limits) == ["a1"]
    two = [entry("a1", servers="x", begun=True), entry("a2", servers="x", begun=True)]
    assert taken(two, two, limits) == ["a1", "a2"]  # their runner has left them


@pytest.fixture
def bench(database: ClusterDatabase) -> Bench:
    tasks = {"A": FunctionTask(lambda _handle: None), "B": FunctionTask(lambda _handle: None)}
    return Bench(database, tasks)


def test_the_highest_priority_begins_first_and_then_the_oldest(bench: Bench) -> None:
    """automation 14: the queue in the database has that order, page by page."""
    order = {bench.enqueue("A", priority=p): p for p in (0, 5, -5, 5, 0)}
    queue = bench.store.to_do(10)
    assert [each.priority for each in queue] == [5, 5, 0, 0, -5]
    assert [each.id for each in queue] == sorted(order, key=lambda id_: (-order[id_], id_))
    first = bench.store.to_do(2)
    assert first + bench.store.to_do(2, first[-1]) + bench.store.to_do(9, queue[3]) == queue
    with pytest.raises(InvalidArgumentError, match="priority 101"):
        bench.enqueue("A", priority=101)


def test_a_key_stands_for_the_priority_and_the_undo_that_were_asked_for(bench: Bench) -> None:
    """automation 13: another one under the same key is another request."""
    first = bench.enqueue("A", key="k", undo=True, priority=1)
    assert bench.enqueue("A", key="k", undo=True, priority=1) == first
    for other in ({"undo": True}, {"priority": 1}, {}):
        with pytest.raises(IdempotencyKeyError, match="another request"):
            bench.enqueue("A", key="k", **other)


def test_behind_any_number_of_blocked_operations_a_free_one_is_seen(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """automation 14: a lock that many wait for stops nobody who does not need it."""
    monkeypatch.setattr(runner, "QUEUE_PAGE", 3)
    lock = [OperationLock("all")]
    monkeypatch.setattr(bench.service.catalogue.find("A"), "locks", lambda _parameters: lock)
    for _ in range(10):
        bench.enqueue("A")
    last = bench.enqueue("B")
    wanted = bench.runner._wanted(set(), 4)
    assert [each.name for each in wanted] == ["A", "B"]
    assert wanted[-1].id == last


def test_a_list_is_filtered_by_who_asked_and_goes_on_where_a_page_ended(bench: Bench) -> None:
    """automation 18: every operation is on one page, whatever is enqueued meanwhile."""
    ids = [bench.enqueue("A", caller=caller) for caller in ("ada", "bob", "ada")]
    listed = bench.service.list
    assert [each.id for each in listed(caller="ada")] == [ids[2], ids[0]]
    page = listed(limit=2)
    bench.enqueue("B")
    assert [each.id for each in (*page, *listed(limit=2, before=page[-1].id))] == ids[::-1]


@pytest.mark.parametrize(
    ("conninfo", "server"),
    [
        ("host=db1 port=5433 dbname=x", "db1:5433"),
        ("dbname='a b' host = 'db1'", "db1:5432"),
        ("hostaddr=10.0.0.1 port=1", "10.0.0.1:1"),
        ("postgresql://app@db1:5433/x", "db1:5433"),
        ("postgresql://app@db1/x", "db1:5432"),
        ("dbname=x", ":5432"),
    ],
)
def test_databases_of_one_server_have_its_name(conninfo: str, server: str) -> None:
    """automation 9: the server is a value that the topology supplies."""
    assert server_of(conninfo) == server
