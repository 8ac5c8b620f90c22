"""What to do next: place what nobody runs, drain, move on request, rebalance, balance.

In this order; the first that wants something has the tick. All but :class:`Basic` wait while as
many tasks run as may. None of them has a clock or draws a number: ties go to the smaller span and
the smaller id.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tidegate.scheduling.captures import CaptureState
from tidegate.scheduling.model import CaptureID, SetState, Span, by_place
from tidegate.scheduling.placement import Burst, SpanTask, TaskKind

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tidegate.scheduling.placement import Task
    from tidegate.scheduling.replication import ReplicationSet

ADD_BATCH: Final = 50
DRAIN_BATCH: Final = 10
BALANCE_INTERVAL_MS: Final = 60_000
REFUSED_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class View:
    """What the schedulers decide from.

    Attributes:
        wanted: all spans that shall be replicated.
        held_back: spans not to be placed yet: a silent capture may run them.
        captures: the state of each.
        owner: which of them is the owner.
        quiet: captures that have not answered for a while: they are given nothing.
        barred: captures on which a span has failed and that are not to be tried yet.
    """

    checkpoint: int
    wanted: Sequence[Span]
    captures: Mapping[CaptureID, CaptureState]
    sets: Mapping[Span, ReplicationSet]
    owner: CaptureID = ""
    held_back: Collection[Span] = frozenset()
    quiet: Collection[CaptureID] = frozenset()
    barred: Mapping[Span, Collection[CaptureID]] = field(default_factory=dict)

    @property
    def ready(self) -> list[CaptureID]:
        """Captures that may get spans."""
        return sorted(
            c
            for c, s in self.captures.items()
            if s is CaptureState.INITIALIZED and c not in self.quiet
        )

    def allowed(self, span: Span, captures: Sequence[CaptureID]) -> Sequence[CaptureID]:
        """Those of some captures that a span may be tried on now."""
        barred = self.barred.get(span)
        return [c for c in captures if c not in barred] if barred else captures

    @property
    def is_anybody_leaving(self) -> bool:
        """Whether a capture is stopping."""
        return CaptureState.STOPPING in self.captures.values()


class Basic:
    """Places spans that nobody runs, a batch at a time, and removes those not wanted any more."""

    def __init__(self, batch: int = ADD_BATCH) -> None:
        assert batch > 0, "a batch has a size"
        self.batch = batch

    def schedule(self, view: View) -> list[Task]:
        """At most one burst."""
        tasks = self._adds(view)
        if len(view.sets) > len(view.wanted) or tasks or self._differs(view):
            wanted = frozenset(view.wanted)
            for span, found in view.sets.items():
                if span not in wanted:
                    tasks.append(SpanTask(TaskKind.REMOVE, span, found.primary or ""))
        return [Burst(tuple(tasks))] if tasks else []

    def _adds(self, view: View) -> list[SpanTask]:
        targets = view.ready
        if not targets and len(view.captures) == 1:  # nobody else is there
            stopping = (c for c, s in view.captures.items() if s is CaptureState.STOPPING)
            targets = [capture for capture in stopping if capture not in view.quiet]
        if not targets:
            return []
        tasks: list[SpanTask] = []
        for span in view.wanted:
            found = view.sets.get(span)
            if (found is None or found.state is SetState.ABSENT) and span not in view.held_back:
                allowed = view.allowed(span, targets)
                if not allowed:
                    continue  # parked
                to = allowed[len(tasks) % len(allowed)]
                tasks.append(SpanTask(TaskKind.ADD, span, to, view.checkpoint))
                if len(tasks) == self.batch:
                    break
        return tasks

    @staticmethod
    def _differs(view: View) -> bool:
        return any(span not in view.sets for span in view.wanted)


class Drain:
    """Moves all spans away from one capture, a batch at a time.

    Attributes:
        target: the capture that is being drained.
        ended: how the last drain ended.
    """

    def __init__(self, batch: int = DRAIN_BATCH) -> None:
        assert batch > 0, "a batch has a size"
        self.batch = batch
        self.target: CaptureID | None = None
        self.ended = ""

    def set_target(self, capture: CaptureID) -> bool:
        """Ask for a drain; False: another is under way."""
        if self.target is not None:
            return False
        self.target, self.ended = capture, ""
        return True

    def end(self, why: str) -> None:
        """No drain is under way any more."""
        self.ended = f"{self.target} {why}"
        self.target = None

    def schedule(self, view: View) -> list[Task]:
        """Moves; the drain ends when the target has no spans, is gone, or is the last one."""
        self._look(view)
        if self.target is None:
            return []
        own = [found for found in view.sets.values() if self.target in found.roles]
        if not own:
            self.end("is empty")
            return []
        if any(found.state is not SetState.REPLICATING for found in own):
            return []
        if self.target in view.quiet:
            return []  # it could not be told to stop; it answers, or its life ends
        load = Counter(found.primary for found in view.sets.values() if found.primary)
        others = [capture for capture in view.ready if capture != self.target]
        tasks: list[Task] = []
        spans = sorted((f.span for f in own if f.primary == self.target), key=by_place)
        for span in spans:
            allowed = view.allowed(span, others)
            if len(tasks) == self.batch:
                break
            if not allowed:
                continue
            to = min(allowed, key=lambda capture: (load[capture], capture))
            load[to] += 1
            tasks.append(SpanTask(TaskKind.MOVE, span, to))
        return tasks

    def _look(self, view: View) -> None:
        """Whether the drain is still under way, or there is another one to begin."""
        if self.target is not None and self.target not in view.captures:
            self.end("has gone")
        if self.target is not None and len(view.captures) <= 1:
            self.end("is the last capture")
        if self.target is None and len(view.captures) > 1:
            self.target = self._leaving(view)

    @staticmethod
    def _leaving(view: View) -> CaptureID | None:
        """A capture that wants to go, has spans, and is not the owner."""
        leaving = sorted(c for c, s in view.captures.items() if s is CaptureState.STOPPING)
        has_spans = {capture for found in view.sets.values() for capture in found.roles}
        return next((c for c in leaving if c != view.owner and c in has_spans), None)


@dataclass(frozen=True, slots=True)
class Refused:
    """A move that was asked for and is not done."""

    to: CaptureID
    reason: str


class Move:
    """Moves that somebody has asked for; each is tried until it is accepted or cannot be.

    Attributes:
        pending: where spans are to go.
        refused: what became of moves that could not be, the last ``REFUSED_MAX`` spans of them.
    """

    def __init__(self) -> None:
        self.pending: dict[Span, CaptureID] = {}
        self.refused: dict[Span, Refused] = {}

    def request(self, span: Span, to: CaptureID) -> bool:
        """Ask for a move; False: one of the same span is waiting."""
        if span in self.pending:
            return False
        self.pending[span] = to
        self.refused.pop(span, None)
        return True

    def refuse(self, span: Span, to: CaptureID, reason: str) -> None:
        """A move is not done; whoever asked for it finds out why."""
        self.refused.pop(span, None)
        self.refused[span] = Refused(to, reason)
        if len(self.refused) > REFUSED_MAX:
            del self.refused[next(iter(self.refused))]

    def schedule(self, view: View) -> list[Task]:
        """Those that can be; those that cannot be any more are refused."""
        for span, to in list(self.pending.items()):
            reason = refusal(view, span, to)
            if reason:
                del self.pending[span]
                self.refuse(span, to, reason)
        return [SpanTask(TaskKind.MOVE, span, to) for span, to in sorted_moves(self.pending)]

    def accepted(self, task: Task) -> None:
        """A task has begun."""
        if isinstance(task, SpanTask) and self.pending.get(task.span) == task.capture:
            del self.pending[task.span]


def sorted_moves(pending: Mapping[Span, CaptureID]) -> list[tuple[Span, CaptureID]]:
    """In the order of the spans."""
    return sorted(pending.items(), key=lambda each: by_place(each[0]))


def refusal(view: View, span: Span, to: CaptureID) -> str:
    """Why a span cannot be moved to a capture; empty: it can."""
    found = view.sets.get(span)
    if found is None:
        parts = sorted((each for each in view.sets if each.table == span.table), key=by_place)
        if parts and not span.start and not span.end:
            return f"{span} is split: move one of {', '.join(str(part) for part in parts)}"
        return f"{span} is not placed"
    if to not in view.captures:
        return f"{to} is not there"
    silent = sorted({to, found.primary or to} & set(view.quiet))
    reasons = {
        f"{to} is {view.captures[to]}": view.captures[to] is not CaptureState.INITIALIZED,
        f"{span} is {found.state}": found.state is not SetState.REPLICATING,
        f"{to} has {span}": to in found.roles,
        f"{' and '.join(silent)} does not answer": bool(silent),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


class Rebalance:
    """One balance of everything, asked for by somebody.

    Attributes:
        is_requested: it has been asked for and has not begun.
        refused: why the last one was not done; empty when it was.
    """

    def __init__(self) -> None:
        self.is_requested = False
        self.refused = ""

    def schedule(self, view: View) -> list[Task]:
        """One burst, when every wanted span is Replicating; nothing while somebody leaves."""
        if not self.is_requested:
            return []
        if view.is_anybody_leaving:
            self.is_requested = False
            self.refused = "a capture is leaving"
            return []
        sets = [view.sets.get(span) for span in view.wanted]
        if any(found is None or found.state is not SetState.REPLICATING for found in sets):
            return []
        self.refused = ""
        moves = balancing(view, limit=len(view.sets))
        return [Burst(tuple(moves))] if moves else []

    def accepted(self) -> None:
        """The burst has begun."""
        self.is_requested = False


class Balance:
    """Evens out at intervals, and again at once while that finds something to do."""

    def __init__(self, limit: int, interval_ms: int = BALANCE_INTERVAL_MS) -> None:
        self.limit, self.interval_ms = limit, interval_ms
        self.is_forced = False
        self._last_ms: int | None = None

    def schedule(self, view: View, now_ms: int) -> list[Task]:
        """Single moves; none while somebody leaves."""
        is_due = self._last_ms is None or now_ms - self._last_ms >= self.interval_ms
        if not is_due and not self.is_forced:
            return []
        self._last_ms = now_ms
        if view.is_anybody_leaving:
            return []
        moves = balancing(view, limit=self.limit)
        self.is_forced = bool(moves)
        return list(moves)


def balancing(view: View, *, limit: int) -> list[SpanTask]:
    """Moves after which no capture has more than its share, rounded up."""
    captures = view.ready
    if len(captures) < 2:
        return []
    of: dict[CaptureID, list[Span]] = {capture: [] for capture in captures}
    for found in view.sets.values():
        primary = found.primary
        if found.state is SetState.REPLICATING and primary in of and len(found.roles) == 1:
            of[primary].append(found.span)
    share = -(-len(view.sets) // len(captures))
    load = {capture: len(spans) for capture, spans in of.items()}
    moves: list[SpanTask] = []
    for capture in captures:
        for span in sorted(of[capture], key=by_place)[: max(0, len(of[capture]) - share)]:
            if len(moves) == limit:
                break
            allowed = view.allowed(span, captures)
            to = min(allowed, key=lambda each: (load[each], each), default=capture)
            if load[to] + 1 >= load[capture]:
                continue  # where it may go it would even out nothing
            load[to] += 1
            load[capture] -= 1
            moves.append(SpanTask(TaskKind.MOVE, span, to))
    return moves
