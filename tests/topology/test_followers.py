"""Reports of routers: who is late, who is behind, and that every node knows the same."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.cluster.database import ClusterDatabase
from tidegate.cluster.schema import Schema
from tidegate.topology import followers
from tidegate.topology.followers import (
    FORGOTTEN_S,
    LATE_S,
    Heard,
    RouterReport,
    RouterReports,
    _Said,
    merged,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

reports = st.builds(
    RouterReport,
    st.just("r"),
    st.integers(0, 3),
    st.integers(0, 50),
    st.integers(50, 100),
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[ClusterDatabase]:
    with ClusterDatabase.open(f"sqlite:///{tmp_path}/cluster.db") as opened:
        Schema(followers.UPDATES).ensure(opened)
        yield opened


def silent_for(at: RouterReports, router: str, revision: int, seconds: float) -> None:
    """A report that came so long ago."""
    then = time.monotonic() - seconds
    at._said[router] = _Said(revision, then, then)


def known(at: RouterReports) -> dict[str, int]:
    return {router.name: router.revision for router in at.heard().routers}


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 100_000))
def test_a_router_follows_when_it_answers_and_is_far_enough(
    serves: int, wanted: int, silent_ms: int
) -> None:
    report = RouterReport("r", serves, 0, 1_000_000)
    heard = Heard(1_000_000 + silent_ms, (report,))
    follows = serves >= wanted and silent_ms <= LATE_S * 1000
    assert report.follows(wanted, heard.now_ms) is follows
    assert (heard.answering(wanted) == ("r",)) is follows
    assert (heard.missing(wanted) == (report,)) is not follows


@given(st.lists(reports, min_size=1, max_size=6))
def test_the_report_that_came_last_counts_and_since_is_kept_while_the_revision_is(
    heard: list[RouterReport],
) -> None:
    state = merged(None, heard[0])
    assert state == heard[0]
    for report in heard[1:]:
        before, state = state, merged(state, report)
        assert state.seen_ms == max(report.seen_ms, before.seen_ms)
        if before.revision == state.revision:
            assert state.since_ms == before.since_ms


def test_what_one_node_hears_every_node_knows(database: ClusterDatabase) -> None:
    one, other = RouterReports(database), RouterReports(database)
    one.report("web", 3)
    assert known(one) == {"web": 3}
    assert known(other) == {}
    one.flush()
    assert known(other) == {"web": 3}
    other.report("web", 4)  # it follows another node now
    assert known(other) == {"web": 4}
    other.flush()
    assert known(one) == {"web": 4}
    one.goodbye("web")
    assert known(one) == {}
    one.flush()
    assert known(other) == {}


def test_since_is_when_a_revision_was_first_served(database: ClusterDatabase) -> None:
    node = RouterReports(database)
    silent_for(node, "web", 3, 5.0)
    node.flush()
    node.report("web", 3)
    node.flush()
    (router,) = node.heard().routers
    assert 4000 < router.seen_ms - router.since_ms < 15_000
    node.report("web", 4)
    node.flush()
    (router,) = node.heard().routers
    assert router.seen_ms == router.since_ms


def test_the_dead_are_late_then_forgotten(database: ClusterDatabase) -> None:
    node = RouterReports(database)
    silent_for(node, "late", 3, LATE_S + 1)
    silent_for(node, "dead", 3, FORGOTTEN_S + 1)
    node.report("web", 2)
    node.flush()
    heard = node.heard()
    states = {r.name: r.to_json(3, heard.now_ms)["state"] for r in heard.routers}
    assert states == {"late": "late", "web": "behind"}
    assert [r.name for r in heard.missing(2)] == ["late"]
    with database.transaction() as connection:
        followers._write(connection, {}, heard.now_ms)
        assert {row.name for row in followers._read(connection)} == {"late", "web"}


def test_reports_are_written_by_themselves_and_at_the_end(database: ClusterDatabase) -> None:
    node, other = RouterReports(database), RouterReports(database)
    node.start()
    node.report("web", 1)
    deadline = time.monotonic() + 10
    while known(other) != {"web": 1}:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    node.report("web", 2)
    node.close()
    assert known(other) == {"web": 2}


def test_two_nodes_that_hear_of_a_router_at_once_both_go_on(database: ClusterDatabase) -> None:
    nodes = [RouterReports(database) for _ in range(4)]
    begin = threading.Barrier(len(nodes))

    def work(number: int) -> None:
        for revision in range(20):
            begin.wait(10)
            nodes[number].report(f"web-{revision}", revision)
            nodes[number].flush()

    threads = [threading.Thread(target=work, args=[n]) for n in range(len(nodes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert known(nodes[0]) == {f"web-{n}": n for n in range(20)}


def test_no_more_routers_than_can_be_asked_are_remembered(
    database: ClusterDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followers, "ROUTERS_MAX", 5)
    node = RouterReports(database)
    for number in range(9):
        node.report(f"first-{number}", 1)
    node.flush()
    for number in range(9):
        node.report(f"second-{number}", 1)
    node.flush()
    assert len(known(node)) == 5
