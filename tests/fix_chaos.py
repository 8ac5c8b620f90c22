"""Whole lives of workflows on three nodes, their writers, and what disturbs them; for long runs.

A *life* creates a workflow, stops and starts it, verifies, switches, goes back, switches again,
completes or cancels it, and begins anew the other way round, through whichever member answers. A
*ledger* is an application: it inserts, updates and deletes rows of its own through a router, and
knows of each row what it may be. *Faults* kill and freeze members and workers and cut connections.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg

from fix_processes import own_worker
from left_running import running
from tidegate.errors import NotFoundError, OutcomeUnknownError, TidegateError
from tidegate.router.psycopg import run

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from fix_members import Member, MemberCluster
    from fix_soak import Figures
    from tidegate.client import Client
    from tidegate.engines.postgres.local import LocalServer
    from tidegate.router import Router

REACHED_S = 180.0
"""How long a verb may take, however often it is begun again while nodes die."""
PAUSE_S = 0.5
GONE = "gone"


@dataclass(frozen=True)
class Statements:
    """How a ledger writes its table; each with the value, then the key, where it has both."""

    table: str
    sharded: bool
    insert: str
    update: str
    delete: str
    select: str


ORDERS = Statements(
    "corder",
    sharded=False,
    insert="INSERT INTO corder (customer, note) VALUES (%s, %s)",
    update="UPDATE corder SET customer = %s WHERE note = %s",
    delete="DELETE FROM corder WHERE note = %s",
    select="SELECT note, customer FROM corder WHERE note LIKE 'w%'",
)
EVENTS = Statements(
    "event",
    sharded=True,
    insert="INSERT INTO event (value, id) VALUES (%s, %s)",
    update="UPDATE event SET value = %s WHERE id = %s",
    delete="DELETE FROM event WHERE id = %s",
    select="SELECT id, value FROM event WHERE id > 0",
)


class Ledger(threading.Thread):
    """Writes rows of its own, and keeps for each the values it may have; None where it is gone."""

    def __init__(self, router: Router, statements: Statements, rng: random.Random) -> None:
        super().__init__(daemon=True)
        self.router, self.statements, self._rng = router, statements, rng
        self.may: dict[Any, set[int | None]] = {}
        self.written = self.unknown = 0
        self.errors: list[str] = []
        self.refused_s = 0.0
        self._certain: list[Any] = []
        self._ending = threading.Event()

    def run(self) -> None:
        served_at = time.monotonic()
        while not self._ending.wait(0.02):
            if self._write():
                self.refused_s = max(self.refused_s, time.monotonic() - served_at)
                served_at = time.monotonic()

    def _write(self) -> bool:
        key, after, statement, values = self._next()
        route = key if self.statements.sharded else None
        work = partial(_one_row, statement, values)
        before = self.may.get(key, {None})
        try:
            run(self.router, self.statements.table, route, work, deadline_s=60.0)
        except OutcomeUnknownError:
            self.unknown += 1
            self.may[key] = before | {after}
            return False
        except Exception as error:  # noqa: BLE001 - an application sees them all
            self.errors.append(f"{statement} {values}: {type(error).__name__}: {error}")
            return False
        self.written += 1
        self.may[key] = {after}
        if after is not None:
            self._certain.append(key)
        return True

    def _next(self) -> tuple[Any, int | None, str, list[Any]]:
        """Which row is written how; it is no longer certain until that is acknowledged."""
        value = self._rng.randrange(1, 2000)
        roll = self._rng.random()
        if roll < 0.5 or not self._certain:
            key: Any = len(self.may) + 1
            key = key if self.statements.sharded else f"w{key}"
            self.may[key] = {None}
            return key, value, self.statements.insert, [value, key]
        at = self._rng.randrange(len(self._certain))
        self._certain[at], self._certain[-1] = self._certain[-1], self._certain[at]
        key = self._certain.pop()
        if roll < 0.85:
            return key, value, self.statements.update, [value, key]
        return key, None, self.statements.delete, [key]

    def is_routed(self) -> bool:
        """Whether the router knows the table by now; members hear of it one after another."""
        with contextlib.suppress(NotFoundError):
            return bool(self.router.resolve(self.statements.table, 1))
        return False

    def finish(self) -> None:
        self._ending.set()
        self.join(90)
        assert not self.is_alive()

    def astray(self, found: list[tuple[Any, Any]]) -> list[str]:
        """What is wrong with the rows that all places together hold."""
        rows: dict[Any, list[Any]] = {}
        for key, value in found:
            rows.setdefault(key, []).append(value)
        wrong = [f"{key} {rows[key]}: never written" for key in rows.keys() - self.may.keys()]
        for key, allowed in self.may.items():
            values = rows.get(key, [None])
            if len(values) != 1 or values[0] not in allowed:
                wrong.append(f"{key} is {values}, not {allowed}")
        return wrong


def _one_row(statement: str, values: list[Any], connection: psycopg.Connection[Any]) -> None:
    touched = connection.execute(statement, values).rowcount
    assert touched == 1, f"{touched} rows"


class Life(threading.Thread):
    """One workflow after another, there and back."""

    def __init__(
        self,
        cluster: MemberCluster,
        rng: random.Random,
        figures: Figures,
        noun: str,
        begin: Callable[[Client, str, bool], tuple[str, Callable[[], Any]]],
    ) -> None:
        """``begin``: the target keyspace, and what creates a workflow, there or back."""
        super().__init__(daemon=True)
        self._cluster, self._rng, self._figures = cluster, rng, figures
        self._noun, self._begin = noun, begin
        self._ending = threading.Event()
        self._name, self._keyspace = "", ""
        self.failed: BaseException | None = None
        self.completed = 0

    def run(self) -> None:
        number = 0
        try:
            while not self._ending.is_set():
                number += 1
                self._live(f"{self._noun}{number}")
        except BaseException as error:  # noqa: BLE001 - the test tells it
            self.failed = error

    def finish(self) -> None:
        """Let the present workflow come to its end."""
        self._ending.set()
        self.join(10 * REACHED_S)
        assert not self.is_alive()
        if self.failed is not None:
            raise self.failed

    def _live(self, name: str) -> None:
        back = self.completed % 2 == 1
        self._name = name
        self._reach("create", lambda client: self._create(client, back), {"copying", "running"})
        if self._rng.random() < 0.4:
            self._verb("stop", {"stopped"})
            self._verb("start", {"copying", "running"})
        self._reach("run", self._restart, {"running"})
        if self._rng.random() < 0.2 and not self._ending.is_set():
            self._verb("cancel", {GONE})
            return
        self._compare()
        if self._rng.random() < 0.5:
            self._verb("switch_traffic", {"reads switched"}, tablet_types=["replica", "rdonly"])
        self._verb("switch_traffic", {"switched"})
        if self._rng.random() < 0.5:
            self._compare()
            self._verb("reverse_traffic", {"running"})
            self._compare()
            self._verb("switch_traffic", {"switched"})
        self._verb("complete", {GONE})
        self.completed += 1

    def _create(self, client: Client, back: bool) -> None:
        self._keyspace, create = self._begin(client, self._name, back)
        create()

    def _restart(self, client: Client) -> None:
        if self._state() == "error":
            self._figures.count(f"{self._noun}_restarted")
            self._call(client, "start")

    def _call(self, client: Client, verb: str, **options: Any) -> None:
        getattr(getattr(client, self._noun), verb)(self._name, self._keyspace, **options)

    def _verb(self, verb: str, states: set[str], **options: Any) -> None:
        self._reach(verb, lambda client: self._call(client, verb, **options), states)

    def _reach(self, what: str, act: Callable[[Client], object], states: set[str]) -> None:
        """Do it, through any member and as often as need be, until the workflow is there."""
        began, last = time.monotonic(), ""
        while True:
            with contextlib.suppress(TidegateError, OSError):
                if what != "create" and self._state() in states:
                    break
            assert time.monotonic() < began + REACHED_S, f"{what} of {self._name}: {last}"
            try:
                with self._rng.choice(self._cluster.members).client() as client:
                    act(client)
                    if what == "create":
                        break
            except (TidegateError, OSError) as error:
                last = f"{type(error).__name__}: {error}"
                self._figures.count(f"refused_{getattr(error, 'code', type(error).__name__)}")
                if what == "create" and self._exists():
                    break
            time.sleep(PAUSE_S)
        self._figures.count(f"{self._noun}_{what}")
        self._figures.longest(f"{what}_s", time.monotonic() - began)

    def _exists(self) -> bool:
        with contextlib.suppress(TidegateError, OSError):
            return bool(self._keyspace) and self._state() not in {GONE, "creating"}
        return False

    def _state(self) -> str:
        """What the workflow is in, as any member tells it."""
        with self._rng.choice(self._cluster.members).client() as client:
            try:
                return str(client.workflow.status(self._name, self._keyspace)["state"])
            except NotFoundError:
                return GONE

    def _compare(self) -> None:
        """Two sides that are not equal are what all this looks for."""
        began, last = time.monotonic(), ""
        while True:
            assert time.monotonic() < began + REACHED_S, f"VDiff of {self._name}: {last}"
            try:
                with self._rng.choice(self._cluster.members).client() as client:
                    uuid = client.vdiff.create(self._name, self._keyspace)["UUID"]
                    left = began + REACHED_S - time.monotonic()
                    report = self._compared(uuid, max(left, 1.0))
            except (TidegateError, OSError) as error:
                last = f"{type(error).__name__}: {error}"
                time.sleep(PAUSE_S)
                continue
            assert not report["HasMismatch"], report
            if report["State"] == "completed":
                break
            last = str(report)
            self._figures.count("vdiff_again")
        self._figures.count(f"{self._noun}_vdiff")
        self._figures.longest("vdiff_s", time.monotonic() - began)

    def _compared(self, uuid: str, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                with self._rng.choice(self._cluster.members).client() as client:
                    return client.vdiff.wait(self._name, self._keyspace, uuid, timeout_s=5.0)
            except (TidegateError, OSError):
                if time.monotonic() >= deadline:
                    raise
                time.sleep(PAUSE_S)


class Faults:
    """One after another, by a seed."""

    def __init__(
        self,
        cluster: MemberCluster,
        servers: tuple[LocalServer, ...],
        rng: random.Random,
        figures: Figures,
    ) -> None:
        self._cluster, self._servers, self._rng, self._figures = cluster, servers, rng, figures
        self._kinds = (
            self.kill_member,
            self.freeze_member,
            self.stop_member,
            self.kill_worker,
            self.freeze_worker,
            self.cut_connections,
        )

    def one(self) -> None:
        kind = self._rng.choice(self._kinds)
        kind()
        self._figures.count(kind.__name__)

    def _member(self) -> Member:
        return self._rng.choice(self._cluster.members)

    def kill_member(self) -> None:
        member = self._member()
        member.node.kill()
        time.sleep(self._rng.uniform(0.0, 8.0))  # how long it is away is the point
        member.node.start()

    def stop_member(self) -> None:
        member = self._member()
        member.node.stop()
        member.node.start()

    def freeze_member(self) -> None:
        process = self._member().node.process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        time.sleep(self._rng.uniform(0.5, 12.0))
        process.send_signal(signal.SIGCONT)

    def _worker(self) -> int | None:
        found = running(own_worker())
        return self._rng.choice(found).pid if found else None

    def kill_worker(self) -> None:
        self._signal(signal.SIGKILL)

    def freeze_worker(self) -> None:
        pid = self._signal(signal.SIGSTOP)
        time.sleep(self._rng.uniform(0.5, 12.0))
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> int | None:
        pid = self._worker()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return pid

    def cut_connections(self) -> None:
        """Every second session of ours and of the application, at one of the servers."""
        server = self._rng.choice(self._servers)
        with psycopg.connect(
            server.conninfo(), password=server.password, autocommit=True
        ) as session:
            cut = session.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type IN ('client backend', 'walsender')"
                " AND pid <> pg_backend_pid() AND random() < 0.5"
            ).fetchall()
        self._figures.count("connections_cut", len(cut))
