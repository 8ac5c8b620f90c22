"""The verbs of cluster operations: enqueue, look, pause, resume, cancel, retry, skip, approve.

Decides nothing of its own: it checks a request against the catalogue of tasks, applies the pure
functions to the stored record, and wakes the runner. Nothing is acknowledged that is not stored.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from tidegate import steps
from tidegate.errors import FailedPreconditionError, InvalidArgumentError, TidegateError
from tidegate.operations import claiming, requests
from tidegate.operations.claiming import Limits
from tidegate.operations.history import Asked
from tidegate.operations.ids import IDGenerator
from tidegate.operations.model import ClusterOperation, new_task_container_with_single_task
from tidegate.operations.placing import first_placed, prepared
from tidegate.operations.tasks import Task, check_parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tidegate.operations.locks import OperationLock
    from tidegate.operations.model import TaskContainer
    from tidegate.operations.store import Entry, LogLine, OperationStore
    from tidegate.operations.tasks import TaskCatalogue

KEY_MAX_CHARS: Final = 200
PREVIEW_MAX: Final = 1000
PRIORITY_MAX: Final = 100
PER_SERVER_MAX: Final = 4
"""Operations that are worked on at one database server at once."""
WATCH_POLL_S: Final = 0.2

ENQUEUED: Final = steps.declare(
    "operations.enqueued",
    runs_in="node",
    plan="operations",
    description="an operation is stored; it was not acknowledged yet",
)


@dataclass(frozen=True, slots=True)
class Preview:
    """What an operation would do: its containers, each a list of (task, parameters)."""

    containers: tuple[tuple[tuple[str, Mapping[str, str]], ...], ...]

    def lines(self) -> list[str]:
        """As people read it."""
        return [
            f"{number}. {name} {' '.join(f'{k}={v}' for k, v in given.items() if v)}".rstrip()
            for number, container in enumerate(self.containers, start=1)
            for name, given in container
        ]


class OperationService:
    """All verbs; any thread may call them."""

    def __init__(
        self,
        store: OperationStore,
        catalogue: TaskCatalogue,
        *,
        per_server: int = PER_SERVER_MAX,
    ) -> None:
        self.store = store
        self._per_server = per_server
        self.catalogue = catalogue
        self.is_closed = False
        """Set by the runner when it is shut down: nothing more is enqueued here."""
        self.wake: Callable[[], None] = lambda: None
        """Called after each change; the runner sets it."""
        self._ids = IDGenerator()

    # -- enqueue

    def enqueue_cluster_operation(
        self,
        name: str,
        parameters: Mapping[str, str],
        *,
        key: str | None = None,
        pause_before: Sequence[str] = (),
        priority: int = 0,
        undo: bool = False,
        caller: str = "",
    ) -> ClusterOperation:
        """Store an operation; it begins as soon as a runner has room and its locks are free.

        Args:
            name: one of the catalogue's operations.
            parameters: as its task declares.
            key: the same request with the same key is the same operation.
            pause_before: names or stages of tasks that wait for an approval.
            priority: from -100 to 100; the highest one begins first.
            undo: when it fails, take back what it has done.
            caller: who asks.

        Raises:
            InvalidArgumentError: it cannot be enqueued, or not with these parameters.
            TidegateError: its task refuses, before anything is stored.
            IdempotencyKeyError: the key was used for another request.
            OperationsBusyError: too many operations have not ended.
        """
        root = new_task_container_with_single_task(name, parameters)
        if key is not None:  # what was enqueued then may have changed the world meanwhile
            request = _request(name, parameters, [root], pause_before, priority, undo=undo)
            if (found := self.store.find_key(key, request)) is not None:
                return found
        self.check(name, parameters)
        self._check_gates(root, pause_before)
        return self.enqueue(
            name,
            parameters,
            [root],
            key=key,
            pause_before=pause_before,
            priority=priority,
            undo=undo,
            caller=caller,
        )

    def check(self, name: str, parameters: Mapping[str, str]) -> None:
        """Refuse what :meth:`enqueue_cluster_operation` would refuse; stores nothing."""
        task = self.catalogue.operation(name)
        check_parameters(name, task, parameters)
        task.check(parameters)

    def _check_gates(self, root: TaskContainer, pause_before: Sequence[str]) -> None:
        """Refuse a word that no task would ever wait at: it was meant to stop something."""
        found = [task for container in self._expanded([root]) for task in container.tasks]
        known = {word for task in found for word in (task.name, task.stage) if word}
        unknown = sorted(set(pause_before) - known)
        if unknown:
            raise InvalidArgumentError(
                f"the operation has nothing to pause before: {', '.join(unknown)}",
                next_step=f"use one of {', '.join(sorted(known))}",
            )

    def enqueue(
        self,
        name: str,
        parameters: Mapping[str, str],
        containers: Sequence[TaskContainer],
        *,
        key: str | None = None,
        pause_before: Sequence[str] = (),
        priority: int = 0,
        undo: bool = False,
        caller: str = "",
    ) -> ClusterOperation:
        """Store an operation of these containers; as :meth:`enqueue_cluster_operation`."""
        if self.is_closed:
            raise FailedPreconditionError(
                f"{name} cannot be enqueued: the runner of operations was shut down",
                next_step="ask another node, or start this one again",
            )
        if key is not None and not 0 < len(key) <= KEY_MAX_CHARS:
            raise InvalidArgumentError(
                f"an idempotency key has 1 to {KEY_MAX_CHARS} characters",
                next_step="use a UUID, a new one for each operation",
            )
        if not -PRIORITY_MAX <= priority <= PRIORITY_MAX:
            raise InvalidArgumentError(
                f"the priority {priority} is not between -{PRIORITY_MAX} and {PRIORITY_MAX}",
                next_step="leave it out, or give one in between; the highest begins first",
            )
        operation = ClusterOperation(
            id=self._ids.next_id(),
            name=name,
            parameters=dict(parameters),
            serial_tasks=first_placed(prepared(containers, self.catalogue, self._ids)),
            pause_before=tuple(pause_before),
            priority=priority,
            servers=self._servers_of(name, parameters),
            undo=undo,
            caller=caller,
        )
        request = _request(name, parameters, containers, pause_before, priority, undo=undo)
        added = self.store.insert(operation, key=key, request=request)
        steps.reached(ENQUEUED)
        self.wake()
        return added

    def preview(self, name: str, parameters: Mapping[str, str]) -> Preview:
        """What an operation would do, after the checks of an enqueue.

        Raises: as :meth:`check`.
        """
        self.check(name, parameters)
        root = new_task_container_with_single_task(name, parameters)
        found = []
        for container in self._expanded([root]):
            found.append(tuple((task.name, task.parameters) for task in container.tasks))
            if len(found) > PREVIEW_MAX:
                break
        return Preview(tuple(found))

    def _expanded(self, containers: Sequence[TaskContainer]) -> Iterator[TaskContainer]:
        """Containers in the order in which they would run, as far as tasks can tell."""
        for container in prepared(containers, self.catalogue, self._ids):
            yield container
            for task in container.tasks:
                code = self.catalogue.find(task.name)
                yield from self._expanded(code.preview(task.parameters))

    # -- look

    def get_cluster_operation_details(self, id_: str) -> ClusterOperation:
        """Everything that is known of an operation.

        Raises:
            NotFoundError: there is none.
        """
        operation = self.store.get(id_)
        return replace(operation, why=operation.why or self._why(operation))

    def watch(self, id_: str, after_version: int, timeout_s: float) -> ClusterOperation:
        """An operation once its record is newer than that, or after so long.

        Raises:
            NotFoundError: there is none.
        """
        deadline = time.monotonic() + timeout_s
        while self.store.version(id_) == after_version and time.monotonic() < deadline:
            time.sleep(WATCH_POLL_S)
        return self.get_cluster_operation_details(id_)

    def follow(self, id_: str, after: int, limit: int, timeout_s: float) -> Sequence[LogLine]:
        """Lines of a log after a number, once there is one or the operation has ended.

        Raises:
            NotFoundError: there is no such operation.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            has_ended = self.store.get(id_).has_ended if timeout_s else True
            lines = self.store.log(id_, after=after, limit=limit)
            if lines or has_ended or time.monotonic() >= deadline:
                return lines
            time.sleep(WATCH_POLL_S)

    def _why(self, operation: ClusterOperation) -> str:
        """Which operation keeps this one from beginning; empty: none."""
        if operation.is_under_way or operation.has_ended:
            return ""
        entry = claiming.entry_of(operation)
        found = claiming.blocked_by(entry, self.store.under_way(), self.locks_of, self.limits)
        if found is None:
            return ""
        other, resource = found
        return f"waits for operation {other.id} ({other.name}), which holds {resource}"

    def locks_of(self, entry: Entry) -> Sequence[OperationLock]:
        """What an operation keeps others from; one that nobody knows keeps from nothing."""
        try:
            return self.catalogue.find(entry.name).locks(entry.parameters)
        except TidegateError:
            return ()

    def _servers_of(self, name: str, parameters: Mapping[str, str]) -> tuple[str, ...]:
        if name not in self.catalogue.operations:
            return ()
        return tuple(sorted(set(self.catalogue.find(name).servers(parameters))))

    def role_of(self, name: str) -> str:
        """The role that operations of this name need; one that nobody knows needs the usual one."""
        try:
            return self.catalogue.find(name).role
        except TidegateError:
            return Task.role

    @property
    def limits(self) -> Limits:
        """How many operations are worked on at once."""
        of_kind = {n: self.catalogue.find(n).at_once_max for n in self.catalogue.operations}
        return Limits(of_kind, self._per_server)

    def list(
        self,
        *,
        states: Sequence[str] = (),
        name: str | None = None,
        caller: str | None = None,
        before: str | None = None,
        limit: int = 100,
    ) -> Sequence[ClusterOperation]:
        """The newest operations, or the newest before one."""
        return self.store.page(states=states, name=name, caller=caller, before=before, limit=limit)

    # -- ask

    def pause(self, id_: str, *, caller: str = "") -> ClusterOperation:
        """See :func:`tidegate.operations.requests.paused`."""
        now_ms = self.store.now_ms()
        return self._ask(id_, partial(requests.paused, now_ms=now_ms), Asked("pause", caller))

    def resume(self, id_: str, *, caller: str = "") -> ClusterOperation:
        """See :func:`tidegate.operations.requests.resumed`."""
        return self._ask(id_, requests.resumed, Asked("resume", caller))

    def cancel(self, id_: str, *, caller: str = "") -> ClusterOperation:
        """See :func:`tidegate.operations.requests.cancelled`."""
        now_ms = self.store.now_ms()
        return self._ask(id_, partial(requests.cancelled, now_ms=now_ms), Asked("cancel", caller))

    def undo(self, id_: str, *, caller: str = "") -> ClusterOperation:
        """See :func:`tidegate.operations.requests.undone`."""
        return self._ask(id_, requests.undone, Asked("undo", caller))

    def retry(self, id_: str, *, caller: str = "") -> ClusterOperation:
        """See :func:`tidegate.operations.requests.retried`."""
        return self._ask(id_, requests.retried, Asked("retry", caller))

    def skip(self, id_: str, task: str, reason: str, *, caller: str = "") -> ClusterOperation:
        """See :func:`tidegate.operations.requests.skipped`."""
        asked = Asked(f"skip {task}: {reason}", caller)
        return self._ask(id_, partial(requests.skipped, key=task, reason=reason), asked)

    def approve(
        self, id_: str, container: str | None = None, *, caller: str = ""
    ) -> ClusterOperation:
        """See :func:`tidegate.operations.requests.approved`."""
        asked = Asked(f"approve {container or 'the container that waits'}", caller)
        return self._ask(id_, partial(requests.approved, container=container), asked)

    def _ask(
        self, id_: str, change: Callable[[ClusterOperation], ClusterOperation], asked: Asked
    ) -> ClusterOperation:
        after = self.store.update(id_, change, asked=asked)
        self.wake()
        return after


def _request(
    name: str,
    parameters: Mapping[str, str],
    containers: Sequence[TaskContainer],
    pause_before: Sequence[str],
    priority: int,
    *,
    undo: bool,
) -> str:
    """A hash of everything that was asked for."""
    shape = [
        [c.concurrency, [[task.name, dict(task.parameters)] for task in c.tasks]]
        for c in containers
    ]
    asked: list[object] = [name, dict(parameters), shape, list(pause_before)]
    if priority or undo:  # left out otherwise, as keys are hashed that are stored already
        asked += [priority, undo]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
