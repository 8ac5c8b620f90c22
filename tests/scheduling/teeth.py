"""Broken variants of the scheduler, each a hazard or a situation put back; all must be found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidegate.scheduling import coordinator
from tidegate.scheduling.agent import Agent
from tidegate.scheduling.captures import Captures
from tidegate.scheduling.lease import WriteLease
from tidegate.scheduling.model import Role, SetState, TableState
from tidegate.scheduling.orders import Orders
from tidegate.scheduling.placement import Placement
from tidegate.scheduling.reconciling import Reconciler
from tidegate.scheduling.replication import OrderKind, ReplicationSet
from tidegate.scheduling.schedulers import Basic, View
from tidegate.scheduling.transitions import TRANSITIONS, Act, Rule, When

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


def rules(
    patch: pytest.MonkeyPatch, state: SetState, role: Role | None, reported: TableState, *acts: Act
) -> None:
    patch.setitem(TRANSITIONS[state][role], reported, (Rule(When.ALWAYS, acts),))


def a_lost_span_is_not_replaced(patch: pytest.MonkeyPatch) -> None:
    """H2."""
    rules(patch, SetState.REPLICATING, Role.PRIMARY, TableState.ABSENT)


def lives_are_not_told_apart(patch: pytest.MonkeyPatch) -> None:
    """H7, scheduling 9."""
    update = Captures.update

    def by_name(self: Captures, alive: Any) -> Any:
        for each in alive.values():
            if each.id in self.known:
                self.known[each.id].epoch = each.epoch
        return update(self, alive)

    patch.setattr(Captures, "update", by_name)


def lost_orders_are_not_repeated(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Orders, "due", lambda *_: [])


def unknown_spans_are_placed_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Captures, "may_hold_unknown", [])


def promotion_waits_for_nobody(patch: pytest.MonkeyPatch) -> None:
    """A commit order leaves beside the primary."""
    rules(patch, SetState.COMMIT, Role.SECONDARY, TableState.PREPARED, Act.PROMOTE)


def holes_are_not_seen(patch: pytest.MonkeyPatch) -> None:
    """Scheduling 13."""
    patch.setattr("tidegate.scheduling.watermark.is_covered", lambda _: True)


def a_lease_never_ends(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WriteLease, "is_open", lambda self, _: self._sent_ms is not None)


def nothing_is_placed_while_one_is_silent(patch: pytest.MonkeyPatch) -> None:
    """H5, scheduling 7."""
    schedule = coordinator.Scheduler._schedule

    def waits(self: coordinator.Scheduler, wanted: Any, now_ms: int) -> None:
        if self.captures.is_initialized and self.captures.ticks > 200:
            schedule(self, wanted, now_ms)

    patch.setattr(coordinator.Scheduler, "_schedule", waits)


def spans_are_not_wanted_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reconciler, "wanted", lambda _self, _tables, existing: sorted(existing))


def a_task_outlives_a_fall_back_to_absent(patch: pytest.MonkeyPatch) -> None:
    """H4."""
    put = Placement.put

    def keeps(self: Placement, found: ReplicationSet) -> None:
        task = self.running.get(found.span)
        put(self, found)
        if task and found.state is SetState.ABSENT:
            self.running[found.span] = task

    patch.setattr(Placement, "put", keeps)


class Equal(int):
    """A number that nothing is above or below."""

    def __le__(self, other: int) -> bool:
        return int(self) == other

    def __gt__(self, other: int) -> bool:
        return int(self) != other


def the_limit_of_tasks_is_compared_with_equals(patch: pytest.MonkeyPatch) -> None:
    """H8: once a burst has passed the limit, single tasks pass."""
    made = Placement.__init__
    patch.setattr(Placement, "__init__", lambda self, limit=10: made(self, Equal(limit)))


def errors_of_an_executor_vanish(patch: pytest.MonkeyPatch) -> None:
    """H9."""
    begin = Agent._begin

    def swallows(self: Agent, span: Any, known: Any, task: Any) -> Any:
        found = begin(self, span, known, task)
        self.failures.clear()
        return found

    patch.setattr(Agent, "_begin", swallows)


def reports_of_spans_without_a_set_are_ignored(patch: pytest.MonkeyPatch) -> None:
    """H10."""
    patch.setattr(coordinator.Scheduler, "_find", lambda *_: None)


def reports_have_no_numbers(patch: pytest.MonkeyPatch) -> None:
    heard = Captures.heard

    def forgets(self: Captures, report: Any) -> bool:
        if report.sender in self.known:
            self.known[report.sender].number = 0
        return heard(self, report)

    patch.setattr(Captures, "heard", forgets)


def the_last_one_gets_nothing_while_it_leaves(patch: pytest.MonkeyPatch) -> None:
    """Scheduling 3."""
    adds = Basic._adds
    patch.setattr(Basic, "_adds", lambda self, view: adds(self, view) if view.ready else [])


def a_stopping_capture_refuses_commits(patch: pytest.MonkeyPatch) -> None:
    """Scheduling 4."""
    take = Agent._take

    def refuses(self: Agent, order: Any) -> None:
        if not (self.liveness and order.kind is OrderKind.COMMIT):
            take(self, order)

    patch.setattr(Agent, "_take", refuses)


def balancing_goes_on_while_somebody_leaves(patch: pytest.MonkeyPatch) -> None:
    """Scheduling 5."""
    patch.setattr(View, "is_anybody_leaving", False)


def silence_is_endless(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Captures, "silent", lambda *_: [])


TEETH: list[Callable[[pytest.MonkeyPatch], None]] = [
    a_lost_span_is_not_replaced,
    lives_are_not_told_apart,
    lost_orders_are_not_repeated,
    unknown_spans_are_placed_at_once,
    promotion_waits_for_nobody,
    holes_are_not_seen,
    a_lease_never_ends,
    nothing_is_placed_while_one_is_silent,
    spans_are_not_wanted_again,
    a_task_outlives_a_fall_back_to_absent,
    the_limit_of_tasks_is_compared_with_equals,
    errors_of_an_executor_vanish,
    reports_of_spans_without_a_set_are_ignored,
    reports_have_no_numbers,
    the_last_one_gets_nothing_while_it_leaves,
    a_stopping_capture_refuses_commits,
    balancing_goes_on_while_somebody_leaves,
    silence_is_endless,
]
