"""The router: the routes of now, kept up to date behind the application's back.

Decides which routes are served and when: always the last ones known. A thread follows the source
and swaps one immutable value, so resolving takes no lock and never waits, the first time apart. A
source that is lost is tried again with a bounded back-off while the last routes go on being served;
that is safe, because the databases' own fence refuses a write that goes astray.

The router reports the revision it serves after each change and every few seconds. A report that
fails is forgotten: reporting never gets in the way of routing. A switch of traffic asks the routers
that reported lately, so one that ends says goodbye, when it is closed or when the process ends in
order; one that is killed is forgotten after a minute.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import secrets
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from tidegate.backoff import Backoff
from tidegate.chance import CHANCE
from tidegate.errors import InvalidArgumentError, UnreachableNodeError
from tidegate.router.model import Credentials, Route
from tidegate.topology import routing
from tidegate.topology.records import TabletType

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidegate.router.sources import RouteSource
    from tidegate.topology.model import Snapshot

PAUSES: Final = Backoff(0.05, 2.0, spread=(0.5, 1.0))
STEADY_S: Final = 5.0
"""A source that was followed for so long is tried again without delay."""
REPORT_S: Final = 5.0
START_TIMEOUT_S: Final = 10.0

_ROUTER_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,200}")
_log = logging.getLogger("tidegate.router")


@dataclass(frozen=True, slots=True)
class Routes:
    """The routes at one revision, for an application in one cell."""

    snapshot: Snapshot
    cell: str = ""

    @property
    def revision(self) -> int:
        """The revision of the topology."""
        return self.snapshot.revision

    def resolve(
        self,
        table: str,
        key: Any = None,
        tablet_type: str = TabletType.PRIMARY,
        cell: str | None = None,
        keyspace: str | None = None,
    ) -> Route:
        """The route of a table and key; see :func:`tidegate.topology.routing.resolve`."""
        wanted = TabletType.parse(tablet_type)
        found = routing.resolve(
            self.snapshot,
            table,
            wanted,
            self.cell if cell is None else cell,
            keyspace=keyspace,
            key=key,
        )
        return self._route(found, wanted, self.cell if cell is None else cell)

    def resolve_all(
        self,
        table: str,
        tablet_type: str = TabletType.PRIMARY,
        cell: str | None = None,
        keyspace: str | None = None,
    ) -> tuple[Route, ...]:
        """One route for each shard that holds rows of a table."""
        wanted = TabletType.parse(tablet_type)
        at = self.cell if cell is None else cell
        found = routing.resolve_all(self.snapshot, table, wanted, at, keyspace=keyspace)
        return tuple(self._route(route, wanted, at) for route in found)

    def _route(self, found: routing.Route, tablet_type: TabletType, cell: str) -> Route:
        tablets = tuple(self.snapshot.tablet(alias) for alias in found.tablets)
        near = [tablet for tablet in tablets if tablet.cell == cell] or tablets
        return Route(
            keyspace=found.keyspace,
            shard=found.shard,
            table=found.table,
            tablet_type=tablet_type,
            tablet=CHANCE.choice(near),
            tablets=tablets,
            revision=self.revision,
        )


class Router:
    """Resolves tables and keys by the routes of now; one for a process is enough.

    Args:
        source: where the routes come from.
        cell: where the application is; decides which replicas it reads from.
        credentials: as whom the adapters connect.
        router_id: how the node lists this router; made up when not given.

    Raises:
        InvalidArgumentError: ``router_id`` is no name.
    """

    def __init__(
        self,
        source: RouteSource,
        *,
        cell: str = "",
        credentials: Credentials | None = None,
        router_id: str | None = None,
    ) -> None:
        if router_id is not None and not _ROUTER_ID.fullmatch(router_id):
            raise InvalidArgumentError(
                f"{router_id!r} is not a name for a router",
                next_step="use letters, digits, '.', '_' and '-'",
            )
        self.cell = cell
        self.credentials = credentials or Credentials()
        self.router_id = router_id or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._source = source
        self._changed = threading.Condition()
        self._routes: Routes | None = None
        self._listeners: list[Callable[[Snapshot], None]] = []
        self._closers: list[Callable[[], None]] = []
        self._last_error: Exception | None = None
        self._is_following = False
        self._stop = threading.Event()
        self._report_now = threading.Event()
        self._reporting_pid: int | None = None
        self._threads = [
            threading.Thread(target=work, name=f"tidegate-router-{name}", daemon=True)
            for name, work in (("follow", self._follow), ("report", self._report))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def revision(self) -> int:
        """The revision that is served; -1 before the first routes have come."""
        routes = self._routes
        return -1 if routes is None else routes.revision

    @property
    def is_following(self) -> bool:
        """Whether the source is connected; the routes are served either way."""
        return self._is_following

    @property
    def last_error(self) -> Exception | None:
        """Why the source was lost last, until it is followed again."""
        return self._last_error

    def routes(self, timeout_s: float = START_TIMEOUT_S) -> Routes:
        """The routes now; waits only for the very first ones.

        Raises:
            UnreachableNodeError: none have come within ``timeout_s``.
        """
        if self._routes is None:
            self.wait_for_change(-1, timeout_s)
        if self._routes is None:
            raise UnreachableNodeError(
                f"no routes have come within {timeout_s:g} s: {self._last_error}",
                next_step="check the router's URL and token, and that `tidegate serve` runs",
            ) from self._last_error
        return self._routes

    def resolve(
        self,
        table: str,
        key: Any = None,
        tablet_type: str = TabletType.PRIMARY,
        cell: str | None = None,
        keyspace: str | None = None,
    ) -> Route:
        """Where a table's row is served now.

        Args:
            table: as the database names it.
            key: the value of the sharding column, or a tuple for several columns.
            tablet_type: PRIMARY for writes, REPLICA or RDONLY for reads.
            cell: where to read from, when not in the router's own cell.
            keyspace: the keyspace, for a table whose name alone is not unique.

        Raises:
            UnreachableNodeError: no routes have come yet.
            NotFoundError: no such keyspace or table.
            InvalidArgumentError: the table is ambiguous, or the key is missing.
            ShardKeyError: the key cannot be mapped to a shard.
            DeniedTableError: a switch is under way; retry (:mod:`tidegate.router.retry`).
            FailedPreconditionError: the table is disabled, or no shard serves it.
        """
        return self.routes().resolve(table, key, tablet_type, cell, keyspace)

    def resolve_all(
        self,
        table: str,
        tablet_type: str = TabletType.PRIMARY,
        cell: str | None = None,
        keyspace: str | None = None,
    ) -> tuple[Route, ...]:
        """All routes of a table, one for each shard; errors as :meth:`resolve`."""
        return self.routes().resolve_all(table, tablet_type, cell, keyspace)

    def wait_for_change(self, revision: int, timeout_s: float) -> bool:
        """Wait until another revision than ``revision`` is served; False when the time is over."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self.revision != revision or self._stop.is_set(), timeout_s
            )

    def on_change(self, listener: Callable[[Snapshot], None]) -> None:
        """Call ``listener`` after each change, in the router's thread; it should be quick.

        It is called with the present routes as well, when there are some. What it raises is logged.
        """
        with self._changed:
            self._listeners.append(listener)
            routes = self._routes
        if routes is not None:
            self._tell(listener, routes.snapshot)

    def on_close(self, closer: Callable[[], None]) -> None:
        """Call ``closer`` when the router is closed."""
        self._closers.append(closer)

    def close(self) -> None:
        """Stop following; the last routes go on being served. May be called twice."""
        self._stop.set()
        self._report_now.set()
        self._source.close()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=PAUSES.longest_s * 2)
        self._say_goodbye()
        while self._closers:
            self._closers.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _follow(self) -> None:
        failures = 0
        while not self._stop.is_set():
            began_at = time.monotonic()
            try:
                for snapshot in self._source.changes(self._stop):
                    self._accept(snapshot)
            except Exception as error:  # noqa: BLE001 - whatever a source raises, routing goes on
                self._last_error = error
                _log.debug("the source of routes was lost: %s", error)
            self._is_following = False
            failures = 1 if time.monotonic() - began_at > STEADY_S else failures + 1
            self._stop.wait(PAUSES.pause_s(failures, CHANCE.random()))

    def _accept(self, snapshot: Snapshot) -> None:
        with self._changed:
            is_new = self._routes is None or self._routes.snapshot != snapshot
            self._is_following, self._last_error = True, None
            self._routes = Routes(snapshot, self.cell)
            listeners = list(self._listeners) if is_new else []
            self._changed.notify_all()
        self._report_now.set()
        for listener in listeners:
            self._tell(listener, snapshot)

    def _tell(self, listener: Callable[[Snapshot], None], snapshot: Snapshot) -> None:
        try:
            listener(snapshot)
        except Exception:  # noqa: BLE001 - a listener's fault is its own
            _log.exception("a listener to changes of routes failed")

    def _report(self) -> None:
        while not self._stop.is_set():
            self._report_now.wait(REPORT_S)
            self._report_now.clear()
            if self._stop.is_set() or self._routes is None:
                continue
            if self._reporting_pid is None:
                self._reporting_pid = os.getpid()
                atexit.register(self._say_goodbye)
            try:
                self._source.report(self.router_id, self.revision)
            except Exception as error:  # noqa: BLE001 - reporting never gets in the way of routing
                _log.debug("reporting the revision failed: %s", error)
            self._stop.wait(PAUSES.first_s)

    def _say_goodbye(self) -> None:
        """Once, by the process that reported: a fork of it goes on under the same name."""
        if self._reporting_pid != os.getpid():
            return
        self._reporting_pid = None
        self._stop.set()
        atexit.unregister(self._say_goodbye)
        try:
            self._source.goodbye(self.router_id)
        except Exception as error:  # noqa: BLE001 - the node forgets a silent router by itself
            _log.debug("saying goodbye failed: %s", error)
