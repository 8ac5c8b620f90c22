"""The owner's side: learns what runs where, decides, sends orders, says how far the whole is.

Each tick receives, notes who is alive, feeds reports to the spans they are about, gives out tasks,
computes the watermark and sends. A span is dealt with as soon as what is known of it decides it:
one that somebody writes at once; one that nobody reports, or only prepares, when no capture is
left that was there before this owner and has not answered, for it may be writing it. Such a
capture is answered for by the bound on silence (``silent_captures``): whoever drives the owner
ends its life in the cluster database, and it leaves the alive ones.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from tidegate.errors import NotFoundError
from tidegate.scheduling.attempts import Attempts
from tidegate.scheduling.captures import Captures, CaptureState
from tidegate.scheduling.messages import Header, Heartbeat, Report
from tidegate.scheduling.model import (
    NO_BARRIER,
    Barrier,
    CaptureID,
    Query,
    Role,
    SetState,
    Span,
    SpanStatus,
    TableState,
    TaskStatus,
    Watermark,
    by_place,
)
from tidegate.scheduling.orders import Orders
from tidegate.scheduling.placement import Burst, Placement, TaskKind
from tidegate.scheduling.reconciling import Reconciler
from tidegate.scheduling.replication import may_write, rebuilt
from tidegate.scheduling.schedulers import Balance, Basic, Drain, Move, Rebalance, View
from tidegate.scheduling.settings import DEFAULTS, Settings
from tidegate.scheduling.watermark import Behind, Progress, Redo, behind, clamped, progress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tidegate.errors import TidegateError
    from tidegate.scheduling.attempts import Failed
    from tidegate.scheduling.messages import Message
    from tidegate.scheduling.model import BarrierWithMin, CaptureInfo, TableID
    from tidegate.scheduling.placement import Sends, Task
    from tidegate.scheduling.transport import Transport

_GONE = frozenset({TableState.ABSENT, TableState.STOPPED})


class Scheduler:
    """All spans of one workflow, for as long as one owner holds the lease.

    Args:
        owner: the capture that the owner runs on.
        revision: of its lease.
        workflow_epoch: of the workflow's present life; 0: not known.
    """

    def __init__(
        self,
        owner: CaptureID,
        revision: int,
        transport: Transport,
        *,
        workflow_epoch: int = 0,
        settings: Settings = DEFAULTS,
        reconciler: Reconciler | None = None,
    ) -> None:
        self.owner, self.settings = owner, settings
        self.header = Header(revision, workflow_epoch)
        self.captures = Captures(
            owner,
            heartbeat_ticks=settings.heartbeat_ticks,
            collect_stats_ticks=settings.collect_stats_ticks,
        )
        self.placement = Placement(settings.max_task_concurrency)
        self.basic, self.drain = Basic(settings.add_batch), Drain(settings.drain_batch)
        self.move, self.rebalancing = Move(), Rebalance()
        self.balance = Balance(settings.max_task_concurrency, settings.balance_interval_ms)
        self.progress = Progress(Watermark(), NO_BARRIER)
        self.behind: Behind | None = None
        """Why the watermark stands at what was published before, when it does."""
        self._orders = Orders(owner, self.header, resend_ticks=settings.resend_ticks)
        self._draining: tuple[CaptureID | None, int] = None, 0
        self._attempts = Attempts(settings.retry_ticks, settings.retry_max_ticks)
        self._reconciler = reconciler or Reconciler()
        self._transport = transport
        self._found: dict[Span, dict[CaptureID, SpanStatus]] = {}
        self._published = Watermark()
        self._changed_tick = 0
        self._start = 0
        self._outbox: list[Message] = []
        self._lock = threading.Lock()

    def tick(
        self,
        checkpoint: int,
        tables: Sequence[TableID],
        alive: Mapping[CaptureID, CaptureInfo],
        barrier: BarrierWithMin,
        *,
        now_ms: int = 0,
        redo: Redo | None = None,
    ) -> Watermark:
        """One step; the watermark to publish, or the sentinel.

        Args:
            checkpoint: that is durable now; spans that nobody has worked on start there.
            tables: those that shall be replicated.
            alive: the captures that hold a lease.
            barrier: how far anything may go.
            now_ms: by a clock that nobody sets.
            redo: how far the redo log is durable, where there is one.
        """
        with self._lock:
            self._start = checkpoint
            beat = self.captures.tick()
            reports = [m for m in self._transport.receive() if isinstance(m, Report)]
            joined = self._membership(alive, reports)
            self._settle_found()
            wanted = self._reconciler.wanted(tables, [*self.placement.sets, *self._found])
            self._schedule(wanted, now_ms)
            self.progress = progress(tables, self.placement.sets, barrier, redo)
            before = self._published
            floor = replace(before, checkpoint=max(checkpoint, before.checkpoint))
            self.behind = behind(floor, self.progress)
            found = clamped(floor, self.progress.watermark)
            if found.can_proceed:
                self._published = found
            self._outbox += self._orders.due(self.captures.ticks)
            whom = list(self.captures.known) if beat.is_due else list(joined)
            self._beat(whom, self.progress.barrier, collect_stats=beat.collect_stats)
            outbox, self._outbox = self._outbox, []
            self._transport.send(outbox)
            return found

    def move_table(self, span: Span | TableID, target: CaptureID) -> bool:
        """Ask for a move; False: one of the same span is waiting. Safe from any thread."""
        with self._lock:
            wanted = span if isinstance(span, Span) else Span(span)
            return self.move.request(wanted, target)

    def rebalance(self) -> None:
        """Ask for one balance of everything. Safe from any thread."""
        with self._lock:
            self.rebalancing.is_requested = True

    def drain_capture(self, target: CaptureID) -> int:
        """Ask that a capture give its spans away; how many it has. Safe from any thread.

        Asked again until it is 0. Nothing is begun while another drain is under way, for the last
        capture, or for the owner; a capture that has not answered yet counts as one.

        Raises:
            NotFoundError: no such capture.
        """
        with self._lock:
            known = self.captures.known.get(target)
            if known is None:
                raise NotFoundError(
                    f"there is no capture {target}", next_step="tidegate capture list"
                )
            count = self.placement.primaries().get(target, 0)
            if known.state is CaptureState.UNINITIALIZED:
                return max(1, count)
            if count and len(self.captures.known) > 1 and target != self.owner:
                self.drain.set_target(target)
            return count

    def undrain_capture(self, target: CaptureID) -> None:
        """Take a drain back: the capture is given spans again. Safe from any thread.

        What has been moved away stays where it is; a capture that wants to go by itself still goes.

        Raises:
            NotFoundError: no such capture.
        """
        with self._lock:
            known = self.captures.known.get(target)
            if known is None:
                raise NotFoundError(
                    f"there is no capture {target}", next_step="tidegate capture list"
                )
            if self.drain.target == target:
                self.drain.end("was taken back")
            known.returns = self._orders.number()
            self._draining = None, 0
            if known.state is CaptureState.STOPPING:
                known.state = CaptureState.INITIALIZED

    def answer(self, query: Query) -> None:
        """Answer a question of another node."""
        query.current_table_count = self.drain_capture(query.capture)

    def close(self) -> None:
        """Nothing is sent any more; no span is touched."""
        self._transport.close()

    @property
    def is_initialized(self) -> bool:
        """Every capture that is known has answered."""
        return self.captures.is_initialized

    @property
    def silent_captures(self) -> list[CaptureID]:
        """Captures that hold a lease and have not answered for ``silent_ticks``."""
        return self.captures.silent(self.settings.silent_ticks)

    @property
    def is_cut_off(self) -> bool:
        """The owner hears nothing from a majority: another one should have the lease."""
        return 2 * len(self.silent_captures) > len(self.captures.known)

    def get_task_statuses(self) -> Mapping[CaptureID, Mapping[Span, TaskStatus]]:
        """By capture and span, as reported last."""
        return {
            known.id: {
                span: TaskStatus(status.state, status.checkpoint.checkpoint)
                for span, status in known.statuses.items()
            }
            for known in self.captures.known.values()
        }

    @property
    def faults(self) -> Mapping[TableID, TidegateError]:
        """What is wrong with the spans of a table, while it is."""
        return self._reconciler.faults

    def waits_for(self, span: Span) -> str:
        """What a span that is not Replicating waits for, for people and watchdogs; or nothing."""
        found = self.placement.sets.get(span)
        if found is None and self.captures.may_hold_unknown:
            return f"an answer of {', '.join(self.captures.may_hold_unknown)}"
        if span in self._reconciler.blocked:
            return "spans that overlap it to stop"
        if found is None or found.state is SetState.ABSENT:
            if self.failures_of(span):
                return f"its next attempt: {self._reasons(span)}"
            return "its turn" if self.captures.ready() else "a capture"
        leaving = sorted(c for c, role in found.roles.items() if role is Role.UNDETERMINED)
        stopping = ", ".join(leaving) or found.primary
        return {
            SetState.PREPARE: f"{found.secondary} to prepare",
            SetState.COMMIT: f"{stopping} to stop" if found.secondary else f"{stopping} to begin",
            SetState.REMOVING: f"{', '.join(found.roles)} to stop",
        }.get(found.state, "")

    def failures_of(self, span: Span) -> list[Failed]:
        """Why a span that nobody runs could not begin, on each capture that it was tried on."""
        found = self.placement.sets.get(span)
        return self._attempts.of(span) if found and found.state is SetState.ABSENT else []

    def _reasons(self, span: Span) -> str:
        return "; ".join(f"{each.capture}: {each.reason}" for each in self._attempts.of(span))

    # -- receiving

    def _membership(
        self, alive: Mapping[CaptureID, CaptureInfo], reports: list[Report]
    ) -> tuple[CaptureID, ...]:
        """What those who are known say, then who came and went; those who came."""
        for report in reports:
            if self._accepts(report) and self.captures.heard(report):
                self._learn(report)
        known = set(self.captures.known)
        before = {capture: self.captures.known[capture] for capture in known}
        changes = self.captures.update(alive)
        for capture, status in before.items():
            if self.captures.known.get(capture) is not status:
                self._lost(capture)
        if changes.joined or known != set(self.captures.known):
            self._changed_tick = self.captures.ticks
        return changes.joined

    def _accepts(self, report: Report) -> bool:
        header = report.header
        return (
            report.to == self.owner
            and header.owner_revision == self.header.owner_revision
            and (
                not header.workflow_epoch
                or self.header.workflow_epoch in {0, header.workflow_epoch}
            )
        )

    def _lost(self, capture: CaptureID) -> None:
        self._orders.capture_down(capture)
        self._attempts.forget_capture(capture)
        if self.drain.target == capture:  # the next life of that name has not been asked to go
            self.drain.end("has gone")
        for task in list(self.placement.running.values()):
            if task.kind is TaskKind.MOVE and task.capture == capture:
                self.move.refuse(task.span, capture, f"{capture} has gone")
        for span in list(self._found):
            self._found[span].pop(capture, None)
            if not self._found[span]:
                del self._found[span]
        spans = sorted(self.placement.spans_of(capture), key=by_place)
        self._give(self.placement.capture_down(capture))
        for span in spans:
            self._promote(span)

    def _learn(self, report: Report) -> None:
        for status in report.statuses:
            self._feed(report.sender, status)
        if report.is_full:
            listed = {status.span for status in report.statuses}
            for span in sorted(self.placement.spans_of(report.sender) - listed, key=by_place):
                self._feed(report.sender, SpanStatus(span, TableState.ABSENT))
            for span in [s for s, by in self._found.items() if report.sender in by]:
                if span not in listed:
                    self._find(report.sender, SpanStatus(span, TableState.ABSENT))

    def _feed(self, capture: CaptureID, status: SpanStatus) -> None:
        """One report on one span."""
        if not self._orders.is_current(capture, status):
            self.placement.progressed(capture, status)
            return
        if status.failure:
            status = self._failed(capture, status)
        if status.span not in self.placement.sets:
            self._find(capture, status)
            return
        self._give(self.placement.reported(capture, status))
        self._promote(status.span)

    def _failed(self, capture: CaptureID, status: SpanStatus) -> SpanStatus:
        """A span has ended by itself: its capture has no part in it any more, whatever it was.

        Without this the owner would order the same capture to begin again, at once and for ever.
        """
        span, tick = status.span, self.captures.ticks
        is_new = self._attempts.failed(span, capture, status.order, status.failure, tick)
        task = self.placement.running.get(span)
        if is_new and task and task.kind is TaskKind.MOVE and task.capture == capture:
            self.move.refuse(span, capture, status.failure)
        return replace(status, state=TableState.STOPPED)

    def _promote(self, span: Span) -> None:
        """A secondary that was ready before it could be promoted is not asked to say so again."""
        found = self.placement.sets.get(span)
        if found is None or found.state is not SetState.COMMIT or found.primary:
            return
        capture = found.secondary
        if capture is None or Role.UNDETERMINED in found.roles.values():
            return
        status = self.captures.known[capture].statuses.get(span)
        is_ready = status is not None and status.state is TableState.PREPARED
        if status and is_ready and not self._orders.is_open(capture, span):
            self._give(self.placement.reported(capture, status))

    def _find(self, capture: CaptureID, status: SpanStatus) -> None:
        """A report on a span that has no set."""
        if status.state not in _GONE:
            self._found.setdefault(status.span, {})[capture] = status
        elif status.span in self._found:
            self._found[status.span].pop(capture, None)
            if not self._found[status.span]:
                del self._found[status.span]

    def _settle_found(self) -> None:
        """Make the sets of spans that are known well enough."""
        is_all_known = not self.captures.may_hold_unknown
        for span, statuses in list(self._found.items()):
            writers = [c for c, status in statuses.items() if may_write(status)]
            if not writers and not is_all_known:
                continue
            del self._found[span]
            keep = max(writers, key=lambda c: (statuses[c].epoch, c), default=None)
            orphans = [capture for capture in writers if capture != keep]
            rest = {c: status for c, status in statuses.items() if c not in orphans}
            made = rebuilt(span, self._start, rest)
            self.placement.put(made)
            for capture in orphans:
                after, sends = self.placement.sets[span].orphaned(capture)
                self.placement.conflicts += 1
                self.placement.put(after)
                self._give([(span, send) for send in sends])
            for capture, status in rest.items():
                if span in self.placement.sets:
                    self._give(self.placement.reported(capture, status))

    # -- deciding

    def _schedule(self, wanted: list[Span], now_ms: int) -> None:
        """The first scheduler that wants something has the tick."""
        self._attempts.keep(wanted)
        held: set[Span] = {*self._found, *self._reconciler.blocked}
        if self.captures.may_hold_unknown:
            held |= {span for span in wanted if span not in self.placement.sets}
        states = {each.id: each.state for each in self.captures.known.values()}
        target = self.drain.target
        if target in states and len(states) > 1 and states[target] is CaptureState.INITIALIZED:
            states[target] = CaptureState.STOPPING
        view = View(
            self._start,
            wanted,
            states,
            self.placement.sets,
            self.owner,
            held,
            quiet=frozenset(self.captures.silent(self.settings.quiet_ticks)),
            barred=self._attempts.barred(self.captures.ticks),
        )
        if self._take(self.basic.schedule(view)):
            return
        if len(self.placement.running) >= self.placement.max_task_concurrency:
            return
        if self._take(self.drain.schedule(view)) or self._take_moves(view):
            return
        if self._take(self.rebalancing.schedule(view)):
            self.rebalancing.accepted()
        elif self.captures.ticks - self._changed_tick >= self.settings.settle_ticks:
            self._take(self.balance.schedule(view, now_ms))

    def _take_moves(self, view: View) -> bool:
        """Begin the moves that were asked for; whether any was."""
        moves = self.move.schedule(view)
        for task, accepted in zip(moves, self._take(moves), strict=False):
            if accepted:
                self.move.accepted(task)
        return bool(moves)

    def _take(self, tasks: list[Task]) -> list[bool]:
        """Which of some tasks were begun; empty: there was nothing new to begin."""
        running = self.placement.running
        fresh = any(
            any(each.span not in running for each in task.tasks)
            if isinstance(task, Burst)
            else task.span not in running
            for task in tasks
        )
        if not fresh:
            return []
        accepted, sends = self.placement.accept(tasks)
        self._give(sends)
        return accepted

    # -- sending

    def _give(self, sends: Sends) -> None:
        for span, send in sends:
            known = self.captures.known.get(send.to)
            if known is None:
                continue
            order = self._orders.issue(span, send, known.epoch, self.captures.ticks)
            if order is not None:
                self._outbox.append(order)

    def _drain_number(self) -> int:
        """The number of the drain that is under way; another one for each."""
        if self._draining[0] != self.drain.target:
            number = self._orders.number() if self.drain.target else 0
            self._draining = self.drain.target, number
        return self._draining[1]

    def _beat(self, whom: Sequence[CaptureID], barrier: Barrier, *, collect_stats: bool) -> None:
        drain = self._drain_number()
        for capture in whom:
            known = self.captures.known[capture]
            spans = sorted(self.placement.spans_of(capture), key=by_place)
            header = Header(self.header.owner_revision, self.header.workflow_epoch, known.epoch)
            self._outbox.append(
                Heartbeat(
                    self.owner,
                    capture,
                    header,
                    tuple(spans) if known.wants_full else (),
                    barrier,
                    acked=known.number,
                    floor=self._orders.floor(capture),
                    is_stopping=self.drain.target == capture,
                    drain=drain if self.drain.target == capture else 0,
                    returns=known.returns,
                    collect_stats=collect_stats,
                    wants_full=known.wants_full,
                )
            )
