"""Everything an operation's actions work with: the record, the topology, the sessions, the leases.

Decides how an operation is begun, recorded and ended in the cluster database, and that nothing is
written there without its leases. It must not know what any operation does.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import structlog

from tidegate import waits
from tidegate.cluster.keeper import LeaseKeeper
from tidegate.cluster.leases import Leases
from tidegate.engines.seam import Mark
from tidegate.errors import ConflictError, LeaseLostError, TidegateError
from tidegate.workflow.model import Operation, OperationKind
from tidegate.workflow.sessions import Sessions
from tidegate.workflow.store import StepEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from sqlalchemy import Connection as ClusterConnection

    from tidegate.cluster.database import ClusterDatabase
    from tidegate.cluster.leases import Lease
    from tidegate.operations.plan import PlanStep
    from tidegate.topology.followers import RouterReports
    from tidegate.topology.model import Snapshot
    from tidegate.topology.store import TopologyStore
    from tidegate.workflow.model import Workflow
    from tidegate.workflow.store import WorkflowStore

log = structlog.get_logger("tidegate.workflow")

LEASE = waits.declare("lease", description="another operation on the workflow or keyspace to end")

LEASE_TTL_S = 10.0
LEASE_WAIT_S = 5.0
LEASE_POLL_S = 0.05


def workflow_lease(keyspace: str, name: str) -> str:
    """The lease under which anything is done to a workflow."""
    return f"workflow/{keyspace}/{name}"


def keyspace_lease(keyspace: str) -> str:
    """The lease under which traffic of a keyspace is moved."""
    return f"keyspace/{keyspace}"


class InUse:
    """The leases that threads of this process act under, whatever the cluster database says.

    A lease may expire while its thread still acts: the machine was busy, or the cluster database
    was away. Other nodes succeed it by fencing. This process must not: it would take back, under
    its own name, what its own thread goes on doing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: set[str] = set()

    def take(self, name: str) -> bool:
        """Note that a thread acts under a lease; False when another one does."""
        with self._lock:
            is_free = name not in self._names
            self._names.add(name)
        return is_free

    def give_back(self, name: str) -> None:
        """Note that it has ended."""
        with self._lock:
            self._names.discard(name)


@dataclass(frozen=True)
class Cluster:
    """What the service was composed of; ``holder`` is unique to this process."""

    database: ClusterDatabase
    topology: TopologyStore
    store: WorkflowStore
    holder: str
    routers: RouterReports
    in_use: InUse = field(default_factory=InUse)


@dataclass(frozen=True)
class Routed:
    """When a change of the topology led traffic elsewhere, and the revision it made.

    ``at_ms`` is the cluster database's clock, ``monotonic_s`` this process's.
    """

    revision: int
    at_ms: int
    monotonic_s: float


class Locks:
    """Leases held while an operation runs, taken in the order of their names."""

    def __init__(
        self,
        cluster: Cluster,
        *names: str,
        wait_s: float = LEASE_WAIT_S,
        ttl_s: float = LEASE_TTL_S,
    ) -> None:
        self._cluster = cluster
        self._names = sorted(set(names))
        self._wait_s = wait_s
        self._ttl_s = ttl_s
        self._keepers: list[LeaseKeeper] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._keepers = [self._entered(stack, name) for name in self._names]
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def confirm(self) -> None:
        """Make sure that every lease is still ours and stays so for its whole time from now.

        Raises:
            LeaseLostError: one is not.
        """
        for keeper in self._keepers:
            keeper.confirm()

    def prove(self) -> None:
        """Make sure that every lease is ours now; one look, which writes nothing.

        Raises:
            LeaseLostError: one is not.
        """
        leases = Leases(self._cluster.database)
        with self._cluster.database.read() as connection:
            for lease in self.leases():
                leases.check(connection, lease)

    def leases(self) -> list[Lease]:
        """The leases, to be proven in a transaction."""
        return [keeper.lease for keeper in self._keepers]

    def _entered(self, stack: ExitStack, name: str) -> LeaseKeeper:
        with waits.waiting(LEASE, f"the lease {name}") as wait:
            return self._entered_in_time(stack, name, wait)

    def _entered_in_time(self, stack: ExitStack, name: str, wait: waits.Waiting) -> LeaseKeeper:
        deadline = time.monotonic() + self._wait_s
        while True:
            try:
                return self._entered_once(stack, name)
            except ConflictError as error:
                if wait.due():
                    wait.held_by(error.message)
                if time.monotonic() >= deadline:
                    raise
                time.sleep(LEASE_POLL_S)

    def _entered_once(self, stack: ExitStack, name: str) -> LeaseKeeper:
        cluster = self._cluster
        if not cluster.in_use.take(name):
            raise ConflictError(
                f"{name} is in use by another request on this node ({cluster.holder})",
                next_step="wait for that request to end, then repeat the command",
                name=name,
                holder=cluster.holder,
            )
        with ExitStack() as taken:
            taken.callback(cluster.in_use.give_back, name)
            leases = Leases(cluster.database)
            keeper = taken.enter_context(LeaseKeeper(leases, name, cluster.holder, self._ttl_s))
            stack.push(taken.pop_all())
        return keeper


class Work:
    """One operation on one workflow, with all it needs; closes its sessions when left."""

    def __init__(self, cluster: Cluster, locks: Locks, workflow: Workflow) -> None:
        self.cluster = cluster
        self.locks = locks
        self.workflow = workflow
        self.snapshot = cluster.topology.read()
        self._is_letting_go = False
        self.sessions = Sessions(
            self.snapshot, purpose=f"workflow-{workflow.name}", mark=self._mark()
        )
        self.delete_when_finished = False
        self.delete_when_undone = False
        self.routed_at: Routed | None = None
        self._events: list[StepEvent] = []
        self._gone = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.sessions.close()

    def _mark(self) -> Mark | None:
        """Whose sessions those of this operation are; None for whoever only looks."""
        workflow = self.workflow
        name = workflow_lease(workflow.target_keyspace, workflow.name)
        held = next((lease for lease in self.locks.leases() if lease.name == name), None)
        if held is None:
            return None
        return Mark.of(f"workflow/{workflow.uuid}", held.revision, self._prove)

    def _prove(self) -> None:
        if not self._is_letting_go:
            self.locks.confirm()

    @contextmanager
    def letting_go(self, is_harmless: bool) -> Iterator[None]:
        """Open sessions without proving the leases, for what is right whoever holds them."""
        self._is_letting_go = is_harmless
        try:
            yield
        finally:
            self._is_letting_go = False

    @property
    def operation(self) -> Operation:
        """The operation under way."""
        assert self.workflow.operation is not None
        return self.workflow.operation

    def begin(
        self, kind: OperationKind, params: Mapping[str, Any], notes: Mapping[str, Any]
    ) -> None:
        """Record that an operation begins, before its first effect."""
        number = self.workflow.operations + 1
        operation = Operation(number, kind, dict(params), dict(notes))
        self.save(lambda w: replace(w, operation=operation, operations=number))

    def save(self, change: Callable[[Workflow], Workflow]) -> None:
        """Change the record, under the leases."""
        self.workflow = self.cluster.store.save(change(self.workflow), self.locks.leases())

    def change_topology(
        self,
        change: Callable[[Snapshot], Snapshot],
        record: Callable[[Workflow], Workflow] | None = None,
    ) -> None:
        """Change the topology and, in the same transaction, the record; under the leases."""
        before = self.workflow
        saved: list[Workflow] = []
        at_ms = 0

        def guard(connection: ClusterConnection) -> None:
            nonlocal at_ms
            at_ms = round(self.cluster.database.now(connection).timestamp() * 1000)
            saved.clear()
            leases = self.locks.leases()
            self.cluster.store.prove(connection, leases)
            if record is not None:
                saved.append(self.cluster.store.save_in(connection, record(before)))

        self.snapshot = self.cluster.topology.update(change, guard=guard)
        self.routed_at = Routed(self.snapshot.revision, at_ms, time.monotonic())
        if saved:
            self.workflow = saved[-1]

    def note(self, step: PlanStep, what: str, took_s: float) -> None:
        """Record an event of a step; what happens in a pause is written when it is over."""
        now = self.cluster.store.now() if not step.in_pause else None
        operation = self.operation
        event = StepEvent(operation.number, operation.kind, step.name, what, took_s * 1000.0, now)
        self._events.append(event)
        if not step.in_pause and not self._gone:
            self.flush()

    def flush(self) -> None:
        """Write the events that were kept back."""
        try:
            self.cluster.store.log(self.workflow, self._events)
        except TidegateError as error:  # a history that lags is no reason to fail
            log.warning("workflow.not_recorded", workflow=self.workflow.key, error=str(error))
        else:
            self._events = []

    def undoing(self, error: str) -> None:
        """Record that the operation is being taken back."""
        self._set_operation(undoing=True, error=error)

    def unfinished(self, error: str) -> None:
        """Record why the operation has not ended."""
        self._set_operation(error=error)

    def finished(self) -> None:
        """Record that the operation is over; or that the workflow is.

        Raises:
            TidegateError: it could not be recorded; until it is, the operation has not ended.
        """
        self._end(delete=self.delete_when_finished)

    def undone(self) -> None:
        """Record that the operation never was.

        Whoever lost the leases cannot: then the operation stays recorded, and who holds them now
        finds nothing left to undo.

        Raises:
            TidegateError: it could not be recorded; until it is, the operation has not ended.
        """
        try:
            self._end(delete=self.delete_when_undone)
        except LeaseLostError as error:
            log.warning("workflow.not_recorded", workflow=self.workflow.key, error=str(error))

    def _end(self, *, delete: bool) -> None:
        """Again after a failure: how an earlier attempt ended may be unknown, so look first."""
        if self._gone:
            return
        self.flush()
        found = self.cluster.store.find(self.workflow.target_keyspace, self.workflow.name)
        if found is None or found.uuid != self.workflow.uuid:
            self._gone = True
            return
        if delete:
            self.cluster.store.delete(found, self.locks.leases())
            self._gone = True
        elif found.operation is not None:
            self.workflow = found
            self.save(lambda w: replace(w, operation=None))

    def _set_operation(self, **changes: Any) -> None:
        """Best effort: what is undone or finished must not wait for the cluster database."""
        if self._gone:
            return
        operation = replace(self.operation, **changes)
        try:
            self.save(lambda w: replace(w, operation=operation))
        except TidegateError as error:
            log.warning("workflow.not_recorded", workflow=self.workflow.key, error=str(error))
