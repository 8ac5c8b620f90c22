"""The routes as every follower of this node gets them: one reading of the topology serves all.

Decides when the routes are read and written out (once a change) and how followers wait. Followers
hold sockets, so they wait in the event loop; the topology is watched by one thread. A follower that
gives its name counts as a router: it answers as long as it takes what is sent, and serves what it
took last.
"""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from tidegate.errors import TidegateError
from tidegate.topology import store
from tidegate.topology.routes import routes_to_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tidegate.topology.followers import RouterReports
    from tidegate.topology.store import TopologyStore

WATCH_S: Final = 1.0
UNFOLLOWED_POLL_S: Final = 0.5
"""How often another process's change is looked for while nobody follows this node."""
KEEPALIVE_S: Final = 2.0

log = structlog.get_logger("tidegate.routes")


@dataclass(frozen=True)
class Published:
    """The routes at one revision, ready to be sent."""

    revision: int
    text: str


class RouteFeed:
    """Watches a topology and wakes followers; started once, closed any number of times."""

    def __init__(self, topology: TopologyStore, reports: RouterReports) -> None:
        self._store = topology
        self._reports = reports
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._latest = self._read()
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._thread = threading.Thread(target=self._watch, name="route-feed", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """End every follower's stream and stop watching; does not wait."""
        self._closed.set()
        self._wake()

    @property
    def is_closed(self) -> bool:
        """Whether streams are to end."""
        return self._closed.is_set()

    def current(self) -> Published:
        """The routes now, read anew if they changed."""
        if self._store.revision() != self._latest.revision:
            self._publish(self._read())
        return self._latest

    async def follow(self, seen: int | None, router: str | None = None) -> AsyncIterator[bytes]:
        """Server-sent events: the routes now, unless ``seen``, and after each change.

        Args:
            seen: the revision the follower has.
            router: under which name it counts as a router; without one it does not.
        """
        mine = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._waiting.add(mine)
        self._store.hurry()
        try:
            yield KEEPALIVE_COMMENT
            while not self._closed.is_set():
                # what was sent has been taken, or this would not go on
                if router is not None and seen is not None:
                    self._reports.report(router, seen)
                mine[1].clear()
                latest = self._latest
                if latest.revision != seen:
                    seen = latest.revision
                    yield format_sse_event(data_str=latest.text, event="routes", id=str(seen))
                    continue
                try:
                    await asyncio.wait_for(mine[1].wait(), KEEPALIVE_S)
                except TimeoutError:
                    yield KEEPALIVE_COMMENT
        finally:
            with self._lock:
                self._waiting.discard(mine)
            if router is not None:
                self._reports.goodbye(router)

    def _read(self) -> Published:
        snapshot = self._store.read()
        return Published(snapshot.revision, json.dumps(routes_to_json(snapshot)))

    def _watch(self) -> None:
        while not self._closed.is_set():
            try:
                revision = self._store.wait_for_change(self._latest.revision, WATCH_S, self._poll_s)
                if revision != self._latest.revision:
                    self._publish(self._read())
            except TidegateError as error:
                if self._closed.is_set():
                    return
                # Followers keep the routes they have; the next look may succeed.
                log.warning("routes could not be read", error=str(error))
                self._closed.wait(WATCH_S)

    def _poll_s(self) -> float:
        return store.POLL_S if self._waiting else UNFOLLOWED_POLL_S

    def _publish(self, published: Published) -> None:
        with self._lock:
            if published.revision > self._latest.revision:
                self._latest = published
        self._wake()

    def _wake(self) -> None:
        with self._lock:
            waiting = list(self._waiting)
        for loop, event in waiting:
            loop.call_soon_threadsafe(event.set)
