"""Who follows the routes, and how far: what routers report, kept in the cluster database.

Decides when a router counts as answering, as late, and as gone, and how reports become rows. The
rows outlive the node that took the report, and every node reads them, so a router is known to a
switch wherever the switch runs. It must not decide what a switch makes of them.

* A report is kept in memory first and written a moment later, many in one transaction: reporting
  must not slow down the cluster database, and a router must never wait for it.
* Every time is the cluster database's: when a router was heard last, and since when it serves the
  revision it serves. So a delay can be told across nodes.
* A router that says goodbye is forgotten at once, one that dies after :data:`FORGOTTEN_S`.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import structlog
from sqlalchemy import BigInteger, Column, MetaData, Table, Text, case, select
from sqlalchemy.exc import IntegrityError

from tidegate.cluster.ledger import Update
from tidegate.errors import TidegateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from tidegate.cluster.database import ClusterDatabase

LATE_S: Final = 15.0
"""A router reports every 5 s; one that has missed three reports is late."""
FORGOTTEN_S: Final = 60.0
ROUTERS_MAX: Final = 10_000
FLUSH_S: Final = 0.25
"""Between two transactions that write reports."""

_CREATE: Final = """
CREATE TABLE router_report (
    name text NOT NULL PRIMARY KEY,
    revision bigint NOT NULL,
    since_ms bigint NOT NULL,
    seen_ms bigint NOT NULL
)
"""
UPDATES: Final = (Update("topology.router_reports", (_CREATE,)),)
"""What this adds to the ledger of the cluster database."""

_REPORTS: Final = Table(
    "router_report",
    MetaData(),
    Column("name", Text),
    Column("revision", BigInteger),
    Column("since_ms", BigInteger),
    Column("seen_ms", BigInteger),
)

log = structlog.get_logger("tidegate.routers")


@dataclass(frozen=True, slots=True)
class RouterReport:
    """What is known of a router; times are milliseconds of the cluster database's clock.

    Attributes:
        revision: of the topology, that it serves.
        since_ms: when it first said so.
        seen_ms: when it was heard last.
    """

    name: str
    revision: int
    since_ms: int
    seen_ms: int

    def age_s(self, now_ms: int) -> float:
        """How long it has been silent."""
        return max(0, now_ms - self.seen_ms) / 1000

    def is_late(self, now_ms: int) -> bool:
        """Whether it should have been heard since."""
        return self.age_s(now_ms) > LATE_S

    def follows(self, revision: int, now_ms: int) -> bool:
        """Whether it answers, and serves a revision or a later one."""
        return self.revision >= revision and not self.is_late(now_ms)

    def to_json(self, revision: int, now_ms: int) -> dict[str, Any]:
        """As lists show it, given the topology's revision."""
        state = "behind" if self.revision < revision else "following"
        return {
            "router": self.name,
            "revision": self.revision,
            "reported_s_ago": round(self.age_s(now_ms), 3),
            "state": "late" if self.is_late(now_ms) else state,
        }


def merged(known: RouterReport | None, heard: RouterReport) -> RouterReport:
    """What is known after a report; the one that was heard later counts."""
    if known is None:
        return heard
    if known.seen_ms > heard.seen_ms:
        return known
    since = known.since_ms if known.revision == heard.revision else heard.since_ms
    return replace(heard, since_ms=since)


@dataclass(frozen=True, slots=True)
class Heard:
    """Everything known of routers at one moment."""

    now_ms: int
    routers: tuple[RouterReport, ...]

    def answering(self, revision: int) -> tuple[str, ...]:
        """The routers that answer and serve a revision, by name."""
        return tuple(r.name for r in self.routers if r.follows(revision, self.now_ms))

    def missing(self, revision: int) -> tuple[RouterReport, ...]:
        """The routers that are late, or serve an earlier revision."""
        return tuple(r for r in self.routers if not r.follows(revision, self.now_ms))


@dataclass(frozen=True, slots=True)
class _Said:
    """A report that is not written yet; ``revision`` None is a goodbye. Times are monotonic."""

    revision: int | None
    first_at: float
    last_at: float


class RouterReports:
    """Takes the reports of the routers that follow this node; reads those of all nodes.

    Reports are written by a thread of its own once :meth:`start` was called; until then, and in
    between, they count as well, in this process.
    """

    def __init__(self, database: ClusterDatabase) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._said: dict[str, _Said] = {}
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to write reports down."""
        assert self._thread is None, "started once"
        self._thread = threading.Thread(target=self._work, name="router-reports", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is left, and stop; may be called twice."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def report(self, router: str, revision: int) -> None:
        """A router says which revision it serves; waits for nothing."""
        now = time.monotonic()
        with self._lock:
            before = self._said.get(router)
            if before is None and len(self._said) >= ROUTERS_MAX:
                return
            is_same = before is not None and before.revision == revision
            first_at = before.first_at if before is not None and is_same else now
            self._said[router] = _Said(revision, first_at, now)
        self._wake.set()

    def goodbye(self, router: str) -> None:
        """A router has ended; waits for nothing."""
        now = time.monotonic()
        with self._lock:
            self._said[router] = _Said(None, now, now)
        self._wake.set()

    def heard(self) -> Heard:
        """Every router that was heard lately, on any node, by name.

        Raises:
            ClusterDatabaseError: the database failed.
        """
        with self._writing:  # or a report would be in neither place
            with self._lock:
                said = dict(self._said)
            with self._database.read() as connection:
                now_ms = _ms(self._database.now(connection))
                known = {row.name: row for row in _read(connection)}
        for name, heard in _reports(said, now_ms).items():
            if heard is None:
                known.pop(name, None)
            else:
                known[name] = merged(known.get(name), heard)
        fresh = (r for r in known.values() if r.age_s(now_ms) <= FORGOTTEN_S)
        return Heard(now_ms, tuple(sorted(fresh, key=lambda r: r.name)))

    def now_ms(self) -> int:
        """The time that reports are measured by."""
        return _ms(self._database.now())

    def flush(self) -> None:
        """Write down what has been said; what cannot be written is kept for the next time.

        Raises:
            ClusterDatabaseError: the database failed.
        """
        with self._writing:
            with self._lock:
                said = dict(self._said)
            if not said:
                return
            try:
                with self._database.transaction() as connection:
                    now_ms = _ms(self._database.now(connection))
                    _write(connection, _reports(said, now_ms), now_ms)
            except IntegrityError:
                self._wake.set()  # another node heard of the same router just now: once more
                return
            with self._lock:
                for name, written in said.items():
                    if self._said.get(name) is written:
                        del self._said[name]

    def _work(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._wake.clear()
            self._try_flush()
            self._closing.wait(FLUSH_S)
        self._try_flush()

    def _try_flush(self) -> None:
        try:
            self.flush()
        except TidegateError as error:
            log.warning("router reports could not be written", error=str(error))
            self._wake.set()


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def _reports(said: Mapping[str, _Said], now_ms: int) -> dict[str, RouterReport | None]:
    """What has been said, in the database's time."""
    now = time.monotonic()

    def ago(at: float) -> int:
        return now_ms - round((now - at) * 1000)

    return {
        name: None
        if each.revision is None
        else RouterReport(name, each.revision, ago(each.first_at), ago(each.last_at))
        for name, each in said.items()
    }


def _read(connection: Connection) -> Sequence[RouterReport]:
    columns = (_REPORTS.c.name, _REPORTS.c.revision, _REPORTS.c.since_ms, _REPORTS.c.seen_ms)
    return [RouterReport(*row) for row in connection.execute(select(*columns))]


def _write(connection: Connection, reports: Mapping[str, RouterReport | None], now_ms: int) -> None:
    """One transaction's worth: the forgotten go, the known are renewed, the new are added."""
    oldest_ms = now_ms - round(FORGOTTEN_S * 1000)
    connection.execute(_REPORTS.delete().where(_REPORTS.c.seen_ms < oldest_ms))
    known = {row.name for row in _read(connection)}
    _delete(connection, (name for name, heard in reports.items() if heard is None))
    new = 0
    for name, heard in reports.items():
        if heard is None:
            continue
        if name in known:
            connection.execute(_renewal(heard))
        elif len(known) + new < ROUTERS_MAX:
            new += 1
            connection.execute(
                _REPORTS.insert().values(
                    name=name,
                    revision=heard.revision,
                    since_ms=heard.since_ms,
                    seen_ms=heard.seen_ms,
                )
            )


def _delete(connection: Connection, names: Iterable[str]) -> None:
    for name in names:
        connection.execute(_REPORTS.delete().where(_REPORTS.c.name == name))


def _renewal(heard: RouterReport) -> Any:
    """See :func:`merged`: a report that arrived later by another node is kept."""
    is_same = _REPORTS.c.revision == heard.revision
    return (
        _REPORTS.update()
        .where(_REPORTS.c.name == heard.name, _REPORTS.c.seen_ms <= heard.seen_ms)
        .values(
            revision=heard.revision,
            since_ms=case((is_same, _REPORTS.c.since_ms), else_=heard.since_ms),
            seen_ms=heard.seen_ms,
        )
    )
