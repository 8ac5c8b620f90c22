"""The router: what it resolves, how fast it follows over HTTP, and what it does without a node."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fix_routes import TOKEN, HttpNode, bump, sharded, until
from tidegate.errors import (
    DeniedTableError,
    InvalidArgumentError,
    NotFoundError,
    UnauthorizedError,
    UnreachableNodeError,
)
from tidegate.router import HttpSource, Router, StoreSource
from tidegate.router.http import events
from tidegate.topology.records import Keyspace, Shard
from tidegate.topology.rules import RoutingRules

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tidegate.topology.model import Snapshot
    from tidegate.topology.store import TopologyStore


@pytest.fixture
def node(store: TopologyStore) -> Iterator[HttpNode]:
    store.update(sharded)
    node = HttpNode(store).start()
    yield node
    node.stop()


@pytest.fixture
def token(tmp_path: Path) -> str:
    (tmp_path / "token").write_text(TOKEN)
    return f"file:{tmp_path}/token"


def test_a_key_leads_to_its_shard_and_primary(store: TopologyStore) -> None:
    store.update(sharded)
    with Router(StoreSource(store), cell="zone2") as router:
        places = {router.resolve("orders", key).tablet.alias for key in range(20)}
        assert places == {"zone1-00", "zone1-10"}
        route = router.resolve("orders", 1)
        assert (route.keyspace, route.shard, route.table) == ("shop", "-80", "orders")
        assert (route.revision, route.conninfo) == (1, "host=zone1-00")
        assert [r.shard for r in router.resolve_all("orders")] == ["-80", "80-"]


def test_reads_stay_in_their_cell_where_there_is_one(store: TopologyStore) -> None:
    store.update(sharded)
    with Router(StoreSource(store), cell="zone2") as router:
        near = {router.resolve("orders", 1, "replica").tablet.alias for _ in range(50)}
        assert near == {"zone2-02"}
        assert router.resolve("orders", 1, "rdonly", cell="zone1").tablet.alias == "zone1-01"
        far = {router.resolve("orders", 1, "replica", cell="").tablet.alias for _ in range(50)}
        assert far == {"zone1-01", "zone2-02"}


def test_what_cannot_be_routed_is_said(store: TopologyStore) -> None:
    store.update(sharded)
    store.update(lambda s: s.with_keyspace(Keyspace("other")).with_shard(Shard("other", "0")))
    with Router(StoreSource(store)) as router:
        with pytest.raises(InvalidArgumentError, match="2 shards"):
            router.resolve("orders")
        with pytest.raises(NotFoundError):
            router.resolve("nonsense", 1)
        with pytest.raises(NotFoundError):
            router.resolve("orders", 1, keyspace="nowhere")
        with pytest.raises(InvalidArgumentError, match="tablet type"):
            router.resolve("orders", 1, "master")
        store.update(lambda s: s.with_denied_tables("shop", ["-80"], ["orders"]))
        until(lambda: router.revision == 3)
        with pytest.raises(DeniedTableError):
            router.resolve("orders", 1)


@pytest.mark.alone
def test_a_change_is_followed_over_http_within_100_ms(
    node: HttpNode, store: TopologyStore, token: str
) -> None:
    with Router(HttpSource(node.url, token=token), router_id="app-1.2") as router:
        assert router.resolve("orders", 1).shard == "-80"
        delays = []
        for _ in range(20):
            revision = bump(store)
            began_at = time.monotonic()
            assert router.wait_for_change(revision - 1, 5)
            delays.append(time.monotonic() - began_at)
            assert router.revision == revision
        assert sorted(delays)[len(delays) // 2] < 0.1, delays
        assert router.is_following
        until(lambda: node.reported() == {"app-1.2": router.revision})
    assert node.reported() == {}, "it said goodbye"


def test_the_last_routes_are_served_while_no_node_answers(
    node: HttpNode, store: TopologyStore, token: str
) -> None:
    with Router(HttpSource(node.url, token=token)) as router:
        assert router.resolve("orders", 1).shard == "-80"
        for _ in range(2):
            node.stop()
            until(lambda: not router.is_following)
            assert router.resolve("orders", 1).shard == "-80"
            revision = bump(store)
            assert router.revision == revision - 1
            until(lambda: router.last_error is not None)
            node.start()
            until(lambda: router.revision == revision)  # noqa: B023 - waited for right here
            assert router.last_error is None


def test_reports_that_fail_do_not_get_in_the_way(
    node: HttpNode, store: TopologyStore, token: str
) -> None:
    node.refuse_reports = True
    with Router(HttpSource(node.url, token=token)) as router:
        for _ in range(3):
            revision = bump(store)
            until(lambda: router.revision == revision)  # noqa: B023 - waited for right here
        assert node.reported() == {}
        node.refuse_reports = False
        revision = bump(store)
        until(lambda: list(node.reported().values()) == [revision])


def test_a_process_that_ends_without_closing_its_router_says_goodbye(
    node: HttpNode, token: str
) -> None:
    program = """
import sys
from tidegate.router import HttpSource, Router
router = Router(HttpSource(sys.argv[1], token=sys.argv[2]), router_id="script")
router.resolve("orders", 1)
sys.stdin.readline()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", program, node.url, token], stdin=subprocess.PIPE
    )
    until(lambda: "script" in node.reported())
    child.communicate(b"end\n", timeout=20)
    assert child.returncode == 0
    assert node.reported() == {}


def test_a_follower_that_gives_its_name_answers_while_it_listens(
    node: HttpNode, store: TopologyStore
) -> None:
    request = (
        "GET /v1/routes?watch=true&router=proxy HTTP/1.1\r\nHost: node\r\n"
        f"Authorization: Bearer {TOKEN}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", node.port)) as listener:
        listener.sendall(request.encode())
        until(lambda: node.reported() == {"proxy": store.revision()})
        revision = bump(store)
        until(lambda: node.reported() == {"proxy": revision})
    until(lambda: node.reported() == {})


def test_another_node_is_asked_when_one_is_down(node: HttpNode, token: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with Router(HttpSource(dead, node.url, token=token)) as router:
            assert router.resolve("orders", 1).shard == "-80"


def test_a_wrong_token_is_named(node: HttpNode) -> None:
    with Router(HttpSource(node.url)) as router:
        with pytest.raises(UnreachableNodeError, match="no routes have come") as caught:
            router.routes(timeout_s=0.5)
        assert isinstance(caught.value.__cause__, UnauthorizedError)
        assert caught.value.next_step


@pytest.mark.alone
def test_a_router_without_a_node_says_so_and_closes_at_once() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        router = Router(HttpSource(f"http://127.0.0.1:{nobody.getsockname()[1]}"))
        with pytest.raises(UnreachableNodeError, match="no routes have come"):
            router.routes(timeout_s=0.2)
        began_at = time.monotonic()
        router.close()
        router.close()
        assert time.monotonic() - began_at < 3


@pytest.mark.alone
def test_closing_ends_a_stream_that_is_being_read(node: HttpNode, token: str) -> None:
    router = Router(HttpSource(node.url, token=token))
    router.resolve("orders", 1)
    began_at = time.monotonic()
    router.close()
    assert time.monotonic() - began_at < 3
    assert router.resolve("orders", 1).shard == "-80"


def test_listeners_hear_each_change_and_their_faults_stay_theirs(store: TopologyStore) -> None:
    heard: list[int] = []

    def fail(_snapshot: Snapshot) -> None:
        raise ZeroDivisionError

    with Router(StoreSource(store)) as router:
        router.routes()
        router.on_change(fail)
        router.on_change(lambda snapshot: heard.append(snapshot.revision))
        bump(store)
        until(lambda: heard == [0, 1])
        store.update(lambda s: s.with_routing_rules(RoutingRules().with_rule("t", "k0.t")))
        until(lambda: heard == [0, 1, 2])


@pytest.mark.parametrize("url", ["", "127.0.0.1:80", "ftp://x", "http://"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError):
        HttpSource(url)


def test_a_name_that_is_none_is_refused(store: TopologyStore) -> None:
    with pytest.raises(InvalidArgumentError, match="name for a router"):
        Router(StoreSource(store), router_id="app 1/2")


LINES = st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=20)


@settings(deadline=None)
@given(
    st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=5), st.sampled_from(["\n", "\r\n"])
)
def test_events_are_read_as_they_were_written(sent: list[list[str]], end: str) -> None:
    written = f": hello{end}"
    for number, lines in enumerate(sent):
        written += f"id: {number}{end}event: routes{end}"
        written += "".join(f"data: {line}{end}" for line in lines) + f"{end}: still here{end}{end}"
    found = list(events(io.BytesIO(written.encode())))
    assert found == ["\n".join(lines) for lines in sent]


def test_an_event_that_was_cut_off_is_not_one() -> None:
    assert list(events(io.BytesIO(b'data: {"half":\n'))) == []
