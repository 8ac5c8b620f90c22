"""The captures that an owner knows: who has answered, who is silent, who wants to go.

A capture is (id, epoch of its life): another epoch under the same id is another capture, and what
the older one had is lost with it. Each is ready by itself, once it has answered with a full report;
``is_initialized`` alone asks for all of them. Time is counted in ticks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tidegate.scheduling.model import CaptureID, CaptureInfo, Liveness, Span, SpanStatus, TableState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tidegate.scheduling.messages import Report


class CaptureState(StrEnum):
    """What the owner knows of a capture."""

    UNINITIALIZED = "Uninitialized"
    INITIALIZED = "Initialized"
    STOPPING = "Stopping"


HEARTBEAT_TICKS: Final = 2
COLLECT_STATS_TICKS: Final = 200


@dataclass(slots=True)
class CaptureStatus:
    """One capture.

    Attributes:
        epoch: of its life; empty until it is known.
        statuses: of its spans, as reported last.
        heard_tick: when it answered last; before the first answer, when it joined.
        number: of the last report that was taken.
        wants_full: deltas make no sense before the next full report.
        returns: up to this number its drains are taken back; until it knows that, its wish to go
            is not heard.
        may_hold_unknown: it was there before this owner and has not answered yet, so it may run
            spans that nobody has told the owner of.
    """

    id: CaptureID
    epoch: str = ""
    state: CaptureState = CaptureState.UNINITIALIZED
    is_owner: bool = False
    statuses: dict[Span, SpanStatus] = field(default_factory=dict)
    heard_tick: int = 0
    number: int = 0
    wants_full: bool = True
    returns: int = 0
    may_hold_unknown: bool = False

    @property
    def is_ready(self) -> bool:
        """It may be given spans."""
        return self.state is CaptureState.INITIALIZED


@dataclass(frozen=True, slots=True)
class Changes:
    """What a look at the alive captures has shown.

    Attributes:
        joined: captures to greet at once.
        init: when all have answered for the first time: the statuses of each.
        removed: captures that left since, with the statuses that they had.
    """

    joined: tuple[CaptureID, ...] = ()
    init: Mapping[CaptureID, Mapping[Span, SpanStatus]] = field(default_factory=dict)
    removed: Mapping[CaptureID, Mapping[Span, SpanStatus]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Beat:
    """Whether a tick sends heartbeats, and whether these ask for statistics."""

    is_due: bool
    collect_stats: bool


class Captures:
    """All of them; for one thread."""

    def __init__(
        self,
        owner: CaptureID,
        *,
        heartbeat_ticks: int = HEARTBEAT_TICKS,
        collect_stats_ticks: int = COLLECT_STATS_TICKS,
    ) -> None:
        assert heartbeat_ticks > 0, "a heartbeat needs an interval"
        assert collect_stats_ticks > 0, "statistics need an interval"
        self.owner = owner
        self.known: dict[CaptureID, CaptureStatus] = {}
        self.ticks = 0
        self._heartbeat_ticks, self._stats_ticks = heartbeat_ticks, collect_stats_ticks
        self._stats_due = False
        self._bootstrapped = False
        self._seen_any = False

    @property
    def is_initialized(self) -> bool:
        """All that are known have answered, and did so together at least once."""
        return self._bootstrapped and self._all_answered()

    @property
    def may_hold_unknown(self) -> list[CaptureID]:
        """Those that may run spans nobody has told the owner of."""
        return sorted(c.id for c in self.known.values() if c.may_hold_unknown)

    def ready(self) -> list[CaptureID]:
        """Those that may be given spans."""
        return sorted(each.id for each in self.known.values() if each.is_ready)

    def stopping(self) -> list[CaptureID]:
        """Those that want to go."""
        return sorted(c.id for c in self.known.values() if c.state is CaptureState.STOPPING)

    def tick(self) -> Beat:
        """Count one tick."""
        self.ticks += 1
        self._stats_due |= self.ticks % self._stats_ticks == 0
        if self.ticks % self._heartbeat_ticks:
            return Beat(is_due=False, collect_stats=False)
        due, self._stats_due = self._stats_due, False
        return Beat(is_due=True, collect_stats=due)

    def update(self, alive: Mapping[CaptureID, CaptureInfo]) -> Changes:
        """Compare with the captures that the cluster database lists."""
        removed: dict[CaptureID, Mapping[Span, SpanStatus]] = {}
        for each in list(self.known.values()):
            listed = alive.get(each.id)
            if listed is None or (listed.epoch and each.epoch not in {"", listed.epoch}):
                del self.known[each.id]
                removed[each.id] = each.statuses
        joined = tuple(sorted(id_ for id_ in alive if id_ not in self.known))
        for id_ in joined:
            self.known[id_] = CaptureStatus(
                id_,
                alive[id_].epoch,
                is_owner=id_ == self.owner,
                heard_tick=self.ticks,
                may_hold_unknown=not self._seen_any,
            )
        self._seen_any |= bool(joined)
        if self._bootstrapped:
            return Changes(joined, removed=removed)
        self._bootstrapped = bool(self.known) and self._all_answered()
        if not self._bootstrapped:
            return Changes(joined)
        return Changes(joined, init={each.id: each.statuses for each in self.known.values()})

    def heard(self, report: Report) -> bool:
        """Note a report; False: it is not of this life, or older than one that was taken."""
        known = self.known.get(report.sender)
        if known is None:
            return False
        epoch = report.header.capture_epoch
        if known.epoch not in {"", epoch} or report.number <= known.number:
            return False
        if known.wants_full and not report.is_full:
            return False
        known.epoch, known.number, known.heard_tick = epoch, report.number, self.ticks
        known.wants_full = known.may_hold_unknown = False
        if known.state is CaptureState.UNINITIALIZED:
            known.state = CaptureState.INITIALIZED
        if report.liveness is Liveness.STOPPING and report.returned >= known.returns:
            known.state = CaptureState.STOPPING
        if report.is_full:
            known.statuses = {}
        for status in report.statuses:
            if status.state is TableState.ABSENT:
                known.statuses.pop(status.span, None)
            else:
                known.statuses[status.span] = status
        return True

    def silent(self, bound_ticks: int) -> list[CaptureID]:
        """Those that are listed as alive and have not answered for so many ticks."""
        before = self.ticks - bound_ticks
        return sorted(each.id for each in self.known.values() if each.heard_tick < before)

    def _all_answered(self) -> bool:
        return all(c.state is not CaptureState.UNINITIALIZED for c in self.known.values())
