"""All spans at the owner, and the tasks that run on them.

A task is accepted or not: single ones up to a limit, a *burst* (many at once) regardless of it, but
without the spans that run a task already. It ends when its span is Replicating, Absent again, or
forgotten, whatever brought it there. Which task to ask for is decided in ``schedulers``.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tidegate.scheduling.model import (
    CaptureID,
    MultiplePrimaryError,
    SetState,
    Span,
    SpanStatus,
    TableState,
    by_place,
)
from tidegate.scheduling.replication import ReplicationSet, Send

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class TaskKind(StrEnum):
    """What is done with a span."""

    ADD = "add"
    MOVE = "move"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class SpanTask:
    """One thing to do with one span."""

    kind: TaskKind
    span: Span
    capture: CaptureID = ""
    checkpoint: int = 0


@dataclass(frozen=True, slots=True)
class Burst:
    """Many at once."""

    tasks: tuple[SpanTask, ...]


type Task = SpanTask | Burst
type Sends = list[tuple[Span, Send]]

MAX_TASK_CONCURRENCY: Final = 10


class Placement:
    """The sets of all spans; for one thread."""

    def __init__(self, max_task_concurrency: int = MAX_TASK_CONCURRENCY) -> None:
        self.max_task_concurrency = max_task_concurrency
        self.sets: dict[Span, ReplicationSet] = {}
        self.running: dict[Span, SpanTask] = {}
        self.conflicts = 0
        """Reports of a second writer of a span."""
        self._of: defaultdict[CaptureID, set[Span]] = defaultdict(set)

    def spans_of(self, capture: CaptureID) -> frozenset[Span]:
        """Those in which it has a role."""
        return frozenset(self._of.get(capture, ()))

    def put(self, found: ReplicationSet) -> None:
        """Keep a set, or forget it when it is removed; a task that it has ended is no more."""
        before = self.sets.get(found.span)
        for capture in before.roles if before else ():
            if capture not in found.roles:
                self._of[capture].discard(found.span)
        for capture in found.roles:
            self._of[capture].add(found.span)
        self.sets[found.span] = found
        if found.is_removed:
            del self.sets[found.span]
        if found.is_removed or found.state in {SetState.REPLICATING, SetState.ABSENT}:
            self.running.pop(found.span, None)

    def accept(self, tasks: Iterable[Task]) -> tuple[list[bool], Sends]:
        """Begin tasks: which were accepted, and what is to be sent."""
        accepted: list[bool] = []
        sends: Sends = []
        for task in tasks:
            if isinstance(task, Burst):
                for each in task.tasks:
                    if each.span not in self.running:
                        sends += self._begin(each)
                accepted.append(True)
                continue
            has_room = len(self.running) < self.max_task_concurrency
            known = task.kind is TaskKind.ADD or task.span in self.sets
            accepted.append(has_room and known and task.span not in self.running)
            if accepted[-1]:
                sends += self._begin(task)
        return accepted, sends

    def _begin(self, task: SpanTask) -> Sends:
        found = self.sets.get(task.span)
        if found is None:
            if task.kind is not TaskKind.ADD:
                return []
            found = ReplicationSet.new(task.span, task.checkpoint)
        if task.kind is TaskKind.REMOVE and found.state is SetState.ABSENT:
            self.put_out(task.span)
            return []
        self.running[task.span] = task
        match task.kind:
            case TaskKind.ADD:
                after, sends = found.add(task.capture)
            case TaskKind.MOVE:
                after, sends = found.move(task.capture)
            case TaskKind.REMOVE:
                after, sends = found.remove()
        self.put(after)
        return [(task.span, send) for send in sends]

    def put_out(self, span: Span) -> None:
        """Forget a span that nobody works on."""
        found = self.sets.pop(span)
        assert not found.roles, f"{span} is still worked on: {found.roles}"
        self.running.pop(span, None)

    def reported(self, capture: CaptureID, status: SpanStatus) -> Sends:
        """What a report on a known span brings about."""
        found = self.sets[status.span]
        try:
            after, sends = found.reported(capture, status)
        except MultiplePrimaryError:
            self.conflicts += 1
            after, sends = found.orphaned(capture)
        if after is not found:
            self.put(after)
        return [(status.span, send) for send in sends]

    def progressed(self, capture: CaptureID, status: SpanStatus) -> None:
        """A report that is older than the last order says only how far its writer was."""
        found = self.sets.get(status.span)
        if found and found.primary == capture and status.state is TableState.REPLICATING:
            self.sets[status.span] = found.with_progress(status)

    def capture_down(self, capture: CaptureID) -> Sends:
        """A capture is gone; its tasks end, what it did is done by others."""
        sends: Sends = []
        for span in sorted(self._of.pop(capture, ()), key=by_place):
            after, more = self.sets[span].capture_down(capture)
            self.running.pop(span, None)
            self.put(after)
            sends += [(span, send) for send in more]
        return sends

    def primaries(self) -> Mapping[CaptureID, int]:
        """How many spans each capture writes."""
        found: dict[CaptureID, int] = defaultdict(int)
        for each in self.sets.values():
            if each.primary is not None:
                found[each.primary] += 1
        return found
