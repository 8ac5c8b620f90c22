"""A capture's side: takes the owner's orders, carries them out with an executor, reports.

Decides what an order means in the state that a span is in, and what to report when. An order is
taken at most once, and not when a younger one on the same span has been; a younger one replaces
what is still being done for an older. A change of state is reported at once, progress when the
owner asks (its heartbeat), everything when the owner is new, asks for it, or every
``FULL_EVERY`` reports.

A stopping capture takes orders as before, commits included: a move to it that has begun can only
end when it does. It is the owner that sends it nothing new.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tidegate.errors import TidegateError
from tidegate.scheduling.messages import Header, Heartbeat, Order, Reply, Report
from tidegate.scheduling.model import Checkpoint, Liveness, SpanStatus, TableState
from tidegate.scheduling.replication import OrderKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tidegate.scheduling.executing import TableExecutor
    from tidegate.scheduling.messages import Message
    from tidegate.scheduling.model import Barrier, CaptureID, Span
    from tidegate.scheduling.transport import Transport

FULL_EVERY: Final = 20
"""Reports of which one lists every span."""

FAILURE_MAX_CHARS: Final = 300
"""Of a reason that is reported."""

STEPS_MAX: Final = 8
"""States that a span may pass in one tick."""

_HELD: Final = (TableState.PREPARING, TableState.PREPARED, TableState.REPLICATING)
_OVER: Final = (TableState.ABSENT, TableState.STOPPED)


@dataclass(slots=True)
class _Known:
    """A span that the agent knows: it runs, or its end has not been acknowledged yet.

    Attributes:
        order: epoch of the youngest order taken.
        epoch: under which it was told to write, while it may.
        committed: order for which a prepared span was told to write.
        task: what is being done.
        said: what was reported last.
        since: number of the report in which ``said`` is new.
    """

    order: int = 0
    epoch: int = 0
    committed: int = 0
    task: Order | None = None
    said: SpanStatus | None = None
    since: int = 0


class Agent:
    """All spans of one capture; for one thread.

    Args:
        capture: its id.
        epoch: of its life; another one with every start.
        workflow_epoch: of the workflow's present life; 0: not known.
        running: spans that the executor has already.
        owner: the owner and its revision, when known; otherwise whoever comes first.
    """

    def __init__(
        self,
        capture: CaptureID,
        epoch: str,
        executor: TableExecutor,
        transport: Transport,
        *,
        workflow_epoch: int = 0,
        running: Iterable[Span] = (),
        owner: tuple[CaptureID, int] | None = None,
    ) -> None:
        self.capture, self.epoch = capture, epoch
        self.workflow_epoch = workflow_epoch
        self.owner = owner
        self.liveness = Liveness.ALIVE
        self.refused: Counter[str] = Counter()
        """Messages that were not taken, by reason."""
        self.failures: dict[Span, TidegateError] = {}
        """Why spans could not begin, while they cannot."""
        self.replies: list[Reply] = []
        """What became of orders in the last tick."""
        self._executor, self._transport = executor, transport
        self._known: dict[Span, _Known] = {span: _Known() for span in running}
        self._number = 0
        self._acked = 0
        self._floor = 0
        self._full_due = True
        self._changed = False
        self._stops_itself = False
        self._returned = 0

    def tick(self) -> Barrier | None:
        """Receive, act, report; the barrier of the last heartbeat taken, if one came."""
        self.replies = []
        beat: Heartbeat | None = None
        for message in self._transport.receive():
            if not self._accepts(message):
                continue
            if isinstance(message, Heartbeat):
                beat = message
                self._heard(message)
            elif isinstance(message, Order):
                self._take(message)
        for span, known in self._known.items():
            if known.task is not None:
                self._work(span, known, known.task)
        self._report(beat)
        return beat.barrier if beat else None

    def close(self) -> None:
        """Close the transport; the executor is its owner's to close."""
        self._transport.close()

    def stop(self) -> None:
        """The capture itself wants to go; nobody can take that back."""
        self._stops_itself = True
        self.liveness = Liveness.STOPPING

    @property
    def spans(self) -> frozenset[Span]:
        """Those that it has, or works on."""
        return frozenset(
            span
            for span, known in self._known.items()
            if known.task or self._state(span) != "Absent"
        )

    def _accepts(self, message: Message) -> bool:
        header = message.header
        reason = ""
        if isinstance(message, Report) or message.to != self.capture:
            reason = "not for this capture"
        elif header.workflow_epoch and self.workflow_epoch not in {0, header.workflow_epoch}:
            reason = "another life of the workflow"
        elif self.owner and header.owner_revision < self.owner[1]:
            reason = "an older owner"
        elif self.owner and header.owner_revision == self.owner[1]:
            reason = "" if message.sender == self.owner[0] else "two owners of one revision"
        if not reason and isinstance(message, Order) and header.capture_epoch != self.epoch:
            reason = "another life of the capture"
        if reason:
            self.refused[reason] += 1
            return False
        if self.owner != (message.sender, header.owner_revision):
            self._follow(message.sender, header.owner_revision)
        return True

    def _follow(self, owner: CaptureID, revision: int) -> None:
        """Another owner: what the old one ordered and has not begun is not done any more."""
        self.owner = owner, revision
        self._acked, self._floor, self._full_due = 0, 0, True
        for known in self._known.values():
            if known.task and known.task.kind is OrderKind.COMMIT and not known.epoch:
                known.task = None

    def _heard(self, beat: Heartbeat) -> None:
        if beat.header.capture_epoch not in {"", self.epoch}:
            # meant for an earlier life of this name: what it says of it does not hold for this one
            self._full_due = True
            return
        self._acked = max(self._acked, min(beat.acked, self._number))
        self._floor = max(self._floor, beat.floor)
        self._full_due |= beat.wants_full
        if beat.returns > self._returned:
            self._returned, self._changed = beat.returns, True
            if not self._stops_itself:
                self.liveness = Liveness.ALIVE
        if beat.is_stopping and not beat.drain:
            self.stop()
        elif beat.is_stopping and beat.drain > self._returned:
            self.liveness = Liveness.STOPPING

    def _take(self, order: Order) -> None:
        known = self._known.get(order.span)
        if order.epoch < self._floor or (known and order.epoch <= known.order):
            self.refused["an older order"] += 1
            return
        if known is None:
            known = self._known[order.span] = _Known()
        known.order, known.task = order.epoch, order

    def _state(self, span: Span) -> TableState:
        return self._executor.get_table_span_status(span, collect_stats=False).state

    def _work(self, span: Span, known: _Known, task: Order) -> None:
        """Carry on with a task until nothing changes; what became of it."""
        for _ in range(STEPS_MAX):
            before = self._state(span)
            go = self._remove if task.kind is OrderKind.REMOVE else self._add
            reply, ended = go(span, known, task, before)
            if ended:
                known.task = None
            if reply is not None:
                self.replies.append(Reply(task.kind, reply))
            if ended or reply is not None or self._state(span) is before:
                return

    def _add(
        self, span: Span, known: _Known, task: Order, state: TableState
    ) -> tuple[SpanStatus | None, bool]:
        """A reply, and whether the task has ended; neither: look again."""
        is_prepare = task.kind is OrderKind.PREPARE
        if state in _OVER:
            return self._begin(span, known, task)
        if state is TableState.PREPARING:
            self._executor.is_add_table_span_finished(span, is_prepare=is_prepare)
            return None, False
        if state is TableState.PREPARED and not is_prepare:
            if known.committed != task.epoch:
                known.committed = task.epoch
                reply, ended = self._begin(span, known, task)
                if ended:
                    return reply, ended
            if self._executor.is_add_table_span_finished(span, is_prepare=False):
                return None, False
            return self._status(span, known), False
        return self._status(span, known), True

    def _begin(self, span: Span, known: _Known, task: Order) -> tuple[SpanStatus | None, bool]:
        is_prepare = task.kind is OrderKind.PREPARE
        epoch = 0 if is_prepare else task.epoch
        try:
            begun = self._executor.add_table_span(
                span, task.checkpoint, is_prepare=is_prepare, epoch=task.epoch
            )
            self.failures.pop(span, None)
        except TidegateError as error:
            begun = False
            self.failures[span] = error
        if not begun:
            return self._status(span, known), True
        known.epoch = epoch
        return None, False

    def _remove(
        self, span: Span, known: _Known, task: Order, state: TableState
    ) -> tuple[SpanStatus | None, bool]:
        if state is TableState.ABSENT:
            # of a span that nobody has heard of the next report says enough
            return (self._status(span, known) if known.said else None), True
        if state in _HELD:
            if self._executor.remove_table_span(span):
                return None, False
            return self._status(span, known), False
        last, stopped = self._executor.is_remove_table_span_finished(span)
        if not stopped:
            return self._status(span, known), False
        before = known.said.checkpoint if known.said else Checkpoint()
        checkpoint = replace(before, checkpoint=last, resolved=max(last, before.resolved))
        known.epoch = 0
        status = SpanStatus(span, TableState.STOPPED, checkpoint, order=task.epoch)
        self._say(known, status)
        return status, True

    def _status(self, span: Span, known: _Known, *, collect_stats: bool = False) -> SpanStatus:
        status = self._executor.get_table_span_status(span, collect_stats=collect_stats)
        if status.state in _OVER:
            known.epoch = 0
            error = self.failures.get(span)
            reason = status.failure or (str(error) if error else "")
            status = replace(status, failure=reason[:FAILURE_MAX_CHARS])
        if status.state in _HELD and known.task and known.task.kind is OrderKind.REMOVE:
            status = replace(status, state=TableState.STOPPING)
        return replace(status, order=known.order, epoch=known.epoch)

    def _say(self, known: _Known, status: SpanStatus) -> None:
        """Note what the next report says of a span."""
        said = known.said
        if said == status:
            return
        if said is None or (said.state, said.order) != (status.state, status.order):
            self._changed = True
        known.said, known.since = status, self._number + 1

    def _report(self, beat: Heartbeat | None) -> None:
        """Look at every span that runs; report what changed, if the owner is known."""
        collect_stats = beat is not None and beat.collect_stats
        for span, known in list(self._known.items()):
            status = self._status(span, known, collect_stats=collect_stats)
            is_told = known.said is not None and known.since <= self._acked
            if status.state is TableState.ABSENT and not known.task:
                # said for this very order: a second one that came to nothing has to be answered too
                if is_told and known.said == status:
                    if known.order < self._floor:
                        del self._known[span]
                        self.failures.pop(span, None)
                    continue
                if known.said and known.said.state is TableState.STOPPED and not is_told:
                    continue  # the last checkpoint is to arrive
            if status.state is TableState.STOPPED and is_told and known.said == status:
                self._executor.is_remove_table_span_finished(span)  # nobody else frees it
                continue
            self._say(known, status)
        if self.owner is None or not (beat or self._changed):
            return
        self._number += 1
        is_full = self._full_due or self._number % FULL_EVERY == 0
        asked = () if beat is None else beat.spans
        statuses = [
            known.said
            for known in self._known.values()
            if known.said and (is_full or known.since > self._acked)
        ]
        unknown = (span for span in asked if span not in self._known)
        statuses += [SpanStatus(span, TableState.ABSENT) for span in unknown]
        header = Header(self.owner[1], self.workflow_epoch, self.epoch)
        self._transport.send(
            [
                Report(
                    self.capture,
                    self.owner[0],
                    header,
                    self._number,
                    tuple(statuses),
                    is_full,
                    self.liveness,
                    self._returned,
                )
            ]
        )
        self._changed = False
        self._full_due = False
