"""Who follows an operation is told its end, whatever breaks meanwhile, and never hangs."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import pytest

from make_operations import Bench, FunctionTask
from tidegate.client import operations as client
from tidegate.client.operations import AGAIN_S, Operations
from tidegate.errors import ClusterDatabaseError, NoOwnerError, UnreachableNodeError
from tidegate.server import operation_feed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.client.transport import Json, Transport
    from tidegate.cluster.database import ClusterDatabase
    from tidegate.errors import TidegateError

LINE = {"seq": 1, "line": "begins"}
RUNNING = {"state": "RUNNING", "last_seq": 1}
ENDED = {"state": "SUCCEEDED", "last_seq": 2}


def sent(bench: Bench, id_: str) -> list[bytes]:
    """Everything a stream sends, which ends by itself."""

    async def all_of_it() -> list[bytes]:
        found = operation_feed.follow(bench.service, id_, 0, lambda: False)
        return [each async for each in found]

    return asyncio.run(asyncio.wait_for(all_of_it(), 20))


def test_the_stream_of_an_operation_that_was_removed_ends(database: ClusterDatabase) -> None:
    """automation 15: also when it goes between the request and the first look."""
    assert sent(Bench(database, {}), "removed") == []


def test_a_stream_ends_when_the_database_is_away(
    database: ClusterDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """automation 15: the follower comes back for the rest."""
    bench = Bench(database, {"A": FunctionTask(lambda _handle: None)})
    id_ = bench.enqueue("A")

    def away(_id: str) -> int:
        raise ClusterDatabaseError("the cluster database does not answer")

    monkeypatch.setattr(bench.store, "version", away)
    found = b"".join(sent(bench, id_))
    assert b"A enqueued by the node" in found
    assert b'"state": "QUEUED"' in found


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Node:
    """Sends what a test says, stream by stream; an hour passes before each one breaks."""

    def __init__(self, clock: Clock, *streams: tuple[list[Json], TidegateError | None]) -> None:
        self.clock, self.streams = clock, iter(streams)
        self.asked: list[str] = []

    def call(self) -> None:
        """What a noun takes from its transport; nothing here uses it."""

    @contextmanager
    def events(self, _path: str, last: str) -> Iterator[Iterator[tuple[str, Json]]]:
        self.asked.append(last)
        sends, error = next(self.streams)
        yield (("", each) for each in sends)
        if sends:
            self.clock.sleep(3600.0)
        if error is not None:
            raise error


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(client, "time", made)
    return made


def followed(node: Node) -> Iterator[Json]:
    return Operations(cast("Transport", node)).follow("one")


def away() -> UnreachableNodeError:
    return UnreachableNodeError("no node answers")


def test_a_follower_of_a_quiet_operation_comes_back_after_a_restart_and_a_change_of_owner(
    clock: Clock,
) -> None:
    """automation 15: however long nothing was said before the stream broke."""
    node = Node(
        clock,
        ([LINE, RUNNING], None),  # the node is stopped, and ends its streams
        ([], away()),
        ([], NoOwnerError("no member owns the work")),
        ([RUNNING], away()),
        ([{"seq": 2, "line": "ends"}, ENDED], None),
    )
    found = list(followed(node))
    assert [each["seq"] for each in found if "seq" in each] == [1, 2]
    assert found[-1] == ENDED
    assert node.asked == ["", "1", "1", "1", "1"]


def test_a_follower_gives_up_once_no_node_answers_for_long(clock: Clock) -> None:
    """automation 15: it says so at once where none answered in the first place."""
    with pytest.raises(UnreachableNodeError):
        next(followed(Node(clock, ([], away()))))
    assert clock.now_s == 0.0
    many: list[tuple[list[Json], TidegateError | None]] = [([], away()) for _ in range(1000)]
    following = followed(Node(clock, ([RUNNING], away()), *many))
    assert next(following) == RUNNING
    with pytest.raises(UnreachableNodeError):
        next(following)
    assert AGAIN_S <= clock.now_s - 3600.0 <= AGAIN_S + 1.0
