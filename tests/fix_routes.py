"""Routes over real HTTP, a sharded topology, and waiting for a condition."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Self

import uvicorn
from fastapi import FastAPI, Header, Response
from fastapi.sse import EventSourceResponse

from tidegate.server.feed import RouteFeed
from tidegate.topology.followers import RouterReports
from tidegate.topology.records import Cell, Keyspace, Shard, Tablet, TabletType
from tidegate.topology.vschema import VSchema

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidegate.topology.model import Snapshot
    from tidegate.topology.store import TopologyStore

TOKEN = "for this test only"
READS = frozenset({TabletType.REPLICA, TabletType.RDONLY})


def sharded(snapshot: Snapshot) -> Snapshot:
    """``orders`` in two shards, each with a primary and a replica in each of two cells."""
    vschema = VSchema.from_json(
        {
            "sharded": True,
            "vindexes": {"hash": {"type": "hash"}},
            "tables": {"orders": {"column_vindexes": [{"column": "id", "name": "hash"}]}},
        }
    )
    snapshot = snapshot.with_cell(Cell("zone1")).with_cell(Cell("zone2"))
    snapshot = snapshot.with_keyspace(Keyspace("shop")).with_vschema("shop", vschema)
    for number, name in enumerate(("-80", "80-")):
        snapshot = snapshot.with_shard(Shard("shop", name))
        for alias, types in (
            (f"zone1-{number}0", frozenset({TabletType.PRIMARY})),
            (f"zone1-{number}1", READS),
            (f"zone2-{number}2", READS),
        ):
            snapshot = snapshot.with_tablet(Tablet(alias, "shop", name, types, f"host={alias}"))
    return snapshot


def until(condition: Callable[[], bool], within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        threading.Event().wait(0.002)


def bump(store: TopologyStore) -> int:
    """Change the topology; returns its new revision."""
    return store.update(lambda s: s.with_keyspace(Keyspace(f"k{s.revision}"))).revision


@dataclass
class HttpNode:
    """The routes of a store over real HTTP, as a node offers them; can be stopped and restarted."""

    store: TopologyStore
    port: int = 0
    refuse_reports: bool = False
    reports: RouterReports = field(init=False)
    _server: uvicorn.Server | None = None
    _thread: threading.Thread | None = None
    _feed: RouteFeed | None = None

    def __post_init__(self) -> None:
        self.reports = RouterReports(self.store._database)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def reported(self) -> dict[str, int]:
        """The revision each router says it serves."""
        return {router.name: router.revision for router in self.reports.heard().routers}

    def start(self) -> Self:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self.port))
        self.port = listening.getsockname()[1]
        self._feed = RouteFeed(self.store, self.reports)
        self._feed.start()
        config = uvicorn.Config(
            self._app(self._feed), log_level="error", timeout_graceful_shutdown=1, lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=[[listening]])
        self._thread.start()
        until(lambda: bool(self._server and self._server.started))
        return self

    def stop(self) -> None:
        if self._feed is not None and self._server is not None and self._thread is not None:
            self._feed.close()
            self._server.should_exit = True
            self._thread.join()
            self._server = None

    def _app(self, feed: RouteFeed) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/routes")
        def routes(
            authorization: Annotated[str, Header()] = "", *, watch: bool, router: str | None = None
        ) -> Response:
            if authorization != f"Bearer {TOKEN}":
                return Response(status_code=401)
            assert watch
            return EventSourceResponse(feed.follow(None, router))

        @app.post("/v1/routers/{name}")
        def report(name: str, body: dict[str, int]) -> Response:
            if self.refuse_reports:
                return Response(status_code=500)
            self.reports.report(name, body["revision"])
            return Response("{}")

        @app.delete("/v1/routers/{name}")
        def goodbye(name: str) -> Response:
            self.reports.goodbye(name)
            return Response("{}")

        return app
