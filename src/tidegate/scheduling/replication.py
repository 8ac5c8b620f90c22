"""One span at the owner: who writes it, who prepares to, who must stop.

A :class:`ReplicationSet` is a value. Commands (:meth:`~ReplicationSet.add`, ``move``, ``remove``)
start something; reports carry it on by the table in :mod:`tidegate.scheduling.transitions`. What is
to be sent comes back as :class:`Send`. Nothing here knows about lost or late messages: the
coordinator passes only reports that are younger than the last order, and repeats orders.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tidegate.scheduling.model import (
    EMPTY_STATS,
    NO_CHECKPOINT,
    STAGES,
    CaptureID,
    Checkpoint,
    MultiplePrimaryError,
    Role,
    SetState,
    Span,
    SpanStatus,
    Stats,
    TableState,
)
from tidegate.scheduling.transitions import TRANSITIONS, Act, When, settled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tidegate.scheduling.transitions import Rule


class OrderKind(StrEnum):
    """What a capture is told to do with a span."""

    PREPARE = "prepare"
    """Get ready, write nothing."""
    COMMIT = "commit"
    """Become the writer, from the checkpoint."""
    REMOVE = "remove"
    """Stop, and report the last checkpoint."""


@dataclass(frozen=True, slots=True)
class Send:
    """One order that a set wants sent."""

    to: CaptureID
    kind: OrderKind
    checkpoint: Checkpoint = NO_CHECKPOINT


type Outcome = tuple[ReplicationSet, tuple[Send, ...]]

OTHERS: Final[Mapping[When, set[Role]]] = {
    When.ALWAYS: set(),
    When.PRIMARY: {Role.PRIMARY},
    When.SECONDARY: {Role.SECONDARY},
    When.UNDETERMINED: {Role.UNDETERMINED},
    When.SECONDARY_AND_UNDETERMINED: {Role.SECONDARY, Role.UNDETERMINED},
}
"""Roles that others than the reporter must have."""

OF_ANOTHER: Final[Mapping[Act, Role]] = {
    Act.PROMOTE_SECONDARY: Role.SECONDARY,
    Act.STOP_PRIMARY: Role.PRIMARY,
}
"""Acts that do not concern the reporter, and whom they concern."""

BECOMES: Final[Mapping[Act, Role]] = {
    Act.DEMOTE: Role.UNDETERMINED,
    Act.REPREPARE: Role.SECONDARY,
    Act.PROMOTE: Role.PRIMARY,
    Act.PROMOTE_SECONDARY: Role.PRIMARY,
}
"""The role after an act."""

ORDERS: Final[Mapping[Act, OrderKind]] = {
    Act.PREPARE: OrderKind.PREPARE,
    Act.REPREPARE: OrderKind.PREPARE,
    Act.PROMOTE: OrderKind.COMMIT,
    Act.PROMOTE_SECONDARY: OrderKind.COMMIT,
    Act.COMMIT: OrderKind.COMMIT,
    Act.STOP: OrderKind.REMOVE,
    Act.STOP_PRIMARY: OrderKind.REMOVE,
}
"""The order that an act sends."""

_GONE: Final = (TableState.ABSENT, TableState.STOPPED)


@dataclass(frozen=True, slots=True)
class ReplicationSet:
    """What the owner knows of a span."""

    span: Span
    checkpoint: Checkpoint = NO_CHECKPOINT
    state: SetState = SetState.ABSENT
    roles: Mapping[CaptureID, Role] = field(default_factory=dict)
    stats: Stats = EMPTY_STATS

    @classmethod
    def new(cls, span: Span, start: int) -> ReplicationSet:
        """A span that nobody works on; until it is measured all its stages are at its start."""
        begin = Checkpoint(start, start)
        return cls(span, begin, stats=Stats(dict.fromkeys(STAGES, begin)))

    @property
    def primary(self) -> CaptureID | None:
        """The writer."""
        return self._with(Role.PRIMARY)

    @property
    def secondary(self) -> CaptureID | None:
        """Who prepares to become the writer."""
        return self._with(Role.SECONDARY)

    @property
    def is_removed(self) -> bool:
        """Nobody works on it and nobody shall: it may be forgotten."""
        return self.state is SetState.REMOVING and not self.roles

    def _with(self, role: Role) -> CaptureID | None:
        for capture, each in self.roles.items():
            if each is role:
                return capture
        return None

    def add(self, capture: CaptureID) -> Outcome:
        """Let a capture prepare; nothing unless the span is Absent."""
        if self.state is not SetState.ABSENT:
            return self, ()
        added = replace(self, state=SetState.PREPARE, roles={capture: Role.SECONDARY})
        return added, (Send(capture, OrderKind.PREPARE, self.checkpoint),)

    def move(self, capture: CaptureID) -> Outcome:
        """Let another capture prepare to replace the primary; nothing unless Replicating."""
        if self.state is not SetState.REPLICATING or capture in self.roles:
            return self, ()
        roles = {**self.roles, capture: Role.SECONDARY}
        moving = replace(self, state=SetState.PREPARE, roles=roles)
        return moving, (Send(capture, OrderKind.PREPARE, self.checkpoint),)

    def remove(self) -> Outcome:
        """Stop the primary and forget the span; nothing unless Replicating."""
        primary = self.primary
        if self.state is not SetState.REPLICATING or primary is None:
            return self, ()
        return replace(self, state=SetState.REMOVING), (Send(primary, OrderKind.REMOVE),)

    def reported(self, by: CaptureID, status: SpanStatus) -> Outcome:
        """What a capture's report does.

        Raises:
            MultiplePrimaryError: the reporter writes beside the primary; nothing has changed.
        """
        assert status.span == self.span, f"a report on {status.span} for {self.span}"
        rules = TRANSITIONS[self.state][self.roles.get(by)][status.state]
        rule = next(rule for rule in rules if self._holds(rule.when, by))
        return self._apply(rule, by, status)

    def orphaned(self, by: CaptureID) -> Outcome:
        """The reporter writes and must not: it may write until it has stopped."""
        roles = {**self.roles, by: Role.UNDETERMINED}
        return self.settled_as(roles, self.state), (Send(by, OrderKind.REMOVE),)

    def capture_down(self, capture: CaptureID) -> Outcome:
        """A capture is gone, and everything it did has ended."""
        if capture not in self.roles:
            return self, ()
        return self.reported(capture, SpanStatus(self.span, TableState.STOPPED))

    def _holds(self, when: When, by: CaptureID) -> bool:
        others = {role for capture, role in self.roles.items() if capture != by}
        return OTHERS[when] <= others

    def _apply(self, rule: Rule, by: CaptureID, status: SpanStatus) -> Outcome:
        if Act.FAIL in rule.acts:
            raise MultiplePrimaryError(f"{by} writes {self.span} beside its primary")
        assert Act.IMPOSSIBLE not in rule.acts, f"{self.span} is {self.state} with {self.roles}"
        state = rule.after or self.state
        if Act.AGAIN in rule.acts:
            return replace(self, state=state).reported(by, status)
        merged = self.with_progress(status) if Act.MERGE in rule.acts else self
        roles, sends = dict(self.roles), list[Send]()
        for act in rule.acts:
            if act is Act.CLEAR:
                roles.pop(by, None)
                continue
            to = by
            if act in OF_ANOTHER:
                (to,) = (c for c, r in roles.items() if r is OF_ANOTHER[act] and c != by)
            if act in BECOMES:
                roles[to] = BECOMES[act]
            if act in ORDERS:
                at = NO_CHECKPOINT if ORDERS[act] is OrderKind.REMOVE else merged.checkpoint
                sends.append(Send(to, ORDERS[act], at))
        return merged.settled_as(roles, state), tuple(sends)

    def settled_as(self, roles: Mapping[CaptureID, Role], state: SetState) -> ReplicationSet:
        """The set with other roles, in the state that these leave it in."""
        after = settled(state, frozenset(roles.values()))
        if after is self.state and roles == self.roles:
            return self
        changed = replace(self, state=after, roles=roles)
        changed.check()
        return changed

    def with_progress(self, status: SpanStatus) -> ReplicationSet:
        """The set with a reported checkpoint: it never falls; empty statistics replace nothing."""
        checkpoint = self.checkpoint.merged(status.checkpoint)
        stats = self.stats if status.stats.is_empty else status.stats
        if checkpoint == self.checkpoint and stats == self.stats:
            return self
        return replace(self, checkpoint=checkpoint, stats=stats)

    def check(self) -> None:
        """What holds of every set, in any state."""
        held = list(self.roles.values())
        assert held.count(Role.PRIMARY) <= 1, f"{self.span} has two primaries: {self.roles}"
        assert held.count(Role.SECONDARY) <= 1, f"{self.span} has two secondaries: {self.roles}"
        match self.state:
            case SetState.ABSENT:
                assert not held, f"{self.span} is Absent with {self.roles}"
            case SetState.PREPARE:
                assert Role.SECONDARY in held, f"{self.span} prepares nobody: {self.roles}"
            case SetState.COMMIT:
                assert {Role.SECONDARY, Role.PRIMARY} & set(held), f"{self.span}: {self.roles}"
            case SetState.REPLICATING:
                assert Role.PRIMARY in held, f"nobody writes {self.span}: {self.roles}"
                assert Role.SECONDARY not in held, f"{self.span} prepares: {self.roles}"
            case SetState.REMOVING:
                pass


def rebuilt(span: Span, start: int, statuses: Mapping[CaptureID, SpanStatus]) -> ReplicationSet:
    """A span from what all captures say of it, as a new owner does.

    Of several that prepare only the most advanced goes on. Nobody who stops or is not needed loses
    their role before they have stopped.

    Raises:
        MultiplePrimaryError: two say that they write it.
    """
    found = ReplicationSet.new(span, start)
    writers = sorted(capture for capture, status in statuses.items() if may_write(status))
    if len(writers) > 1:
        raise MultiplePrimaryError(f"{' and '.join(writers)} write {span}", captures=writers)
    ready = [TableState.PREPARED, TableState.PREPARING]
    preparing = sorted(
        (c for c, s in statuses.items() if s.state in ready and c not in writers),
        key=lambda capture: (ready.index(statuses[capture].state), capture),
    )
    roles: dict[CaptureID, Role] = {}
    for capture, status in statuses.items():
        if status.state in _GONE:
            continue
        roles[capture] = Role.UNDETERMINED
        if capture in writers:
            roles[capture] = Role.PRIMARY
            found = found.with_progress(status)
        elif capture in preparing[:1]:
            roles[capture] = Role.SECONDARY
    state = SetState.ABSENT
    if writers:
        is_writing = statuses[writers[0]].state is TableState.REPLICATING
        state = SetState.REPLICATING if is_writing else SetState.COMMIT
    if preparing:
        is_prepared = statuses[preparing[0]].state is TableState.PREPARED
        state = SetState.COMMIT if is_prepared or state is SetState.COMMIT else SetState.PREPARE
    return found.settled_as(roles, state)


def may_write(status: SpanStatus) -> bool:
    """Whether a capture writes a span, or has been told to and not to stop since."""
    begins = status.epoch > 0 and status.state in {TableState.PREPARING, TableState.PREPARED}
    return begins or status.state is TableState.REPLICATING
