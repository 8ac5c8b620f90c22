"""Broken variants of the scheduler, each a hazard or a situation put back; all must be found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from scheduling import test_agent as agents
from scheduling import test_owner as owner
from scheduling import test_reconciling as reconciling
from scheduling import test_transitions as transitions
from scheduling import test_trouble as trouble
from tidegate.scheduling import coordinator
from tidegate.scheduling.agent import Agent, _Known
from tidegate.scheduling.attempts import Attempts
from tidegate.scheduling.captures import Captures, CaptureState
from tidegate.scheduling.lease import WriteLease
from tidegate.scheduling.model import CaptureInfo, Role, SetState, Span, TableState
from tidegate.scheduling.orders import Orders
from tidegate.scheduling.placement import Placement
from tidegate.scheduling.reconciling import Reconciler
from tidegate.scheduling.replication import OrderKind, ReplicationSet
from tidegate.scheduling.schedulers import Basic, Move, View
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


def a_stopping_primary_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """H1."""
    rules(patch, SetState.PREPARE, Role.PRIMARY, TableState.STOPPING, Act.MERGE, Act.CLEAR)


def the_end_of_a_removal_by_death_is_not_seen(patch: pytest.MonkeyPatch) -> None:
    """H3."""
    down = Placement.capture_down

    def leaks(self: Placement, capture: str) -> Any:
        before = {span: self.sets[span] for span in self.spans_of(capture)}
        sends = down(self, capture)
        for span, found in before.items():
            if span not in self.sets:
                self.sets[span] = replace(found, roles={})
        return sends

    patch.setattr(Placement, "capture_down", leaks)


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


def the_end_of_a_secondary_in_commit_is_ignored(patch: pytest.MonkeyPatch) -> None:
    """Scheduling 1."""
    for reported in (TableState.STOPPED, TableState.ABSENT):
        rules(patch, SetState.COMMIT, Role.SECONDARY, reported)


def reports_are_judged_by_content(patch: pytest.MonkeyPatch) -> None:
    """Scheduling 2."""
    is_current = Orders.is_current

    def always(self: Orders, capture: str, status: Any) -> bool:
        is_current(self, capture, status)
        return True

    patch.setattr(Orders, "is_current", always)


def late_orders_are_taken(patch: pytest.MonkeyPatch) -> None:
    def takes(self: Agent, order: Any) -> None:
        known = self._known.setdefault(order.span, _Known())
        known.order, known.task = order.epoch, order

    patch.setattr(Agent, "_take", takes)


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


def an_owner_that_hears_nobody_stays(patch: pytest.MonkeyPatch) -> None:
    """Scheduling 6."""
    patch.setattr(coordinator.Scheduler, "is_cut_off", False)


def silence_is_endless(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Captures, "silent", lambda *_: [])


def orders_outlive_the_life_of_their_capture(patch: pytest.MonkeyPatch) -> None:
    """Scheduling 8."""
    patch.setattr(Orders, "capture_down", lambda *_: None)


def lives_of_a_workflow_are_not_told_apart(patch: pytest.MonkeyPatch) -> None:
    """Scheduling 10."""
    accepts = Agent._accepts

    def by_name(self: Agent, message: Any) -> bool:
        header = replace(message.header, workflow_epoch=0)
        return accepts(self, replace(message, header=header))

    accepts_report = coordinator.Scheduler._accepts

    def from_anybody(self: coordinator.Scheduler, report: Any) -> bool:
        header = replace(report.header, workflow_epoch=0)
        return accepts_report(self, replace(report, header=header))

    patch.setattr(Agent, "_accepts", by_name)
    patch.setattr(coordinator.Scheduler, "_accepts", from_anybody)


def what_was_received_counts_as_applied(patch: pytest.MonkeyPatch) -> None:
    """Scheduling 11."""
    progress = ReplicationSet.with_progress

    def beyond(self: ReplicationSet, status: Any) -> ReplicationSet:
        at = replace(status.checkpoint, checkpoint=status.checkpoint.resolved)
        return progress(self, replace(status, checkpoint=at))

    patch.setattr(ReplicationSet, "with_progress", beyond)


def nobody_knows_what_a_span_waits_for(patch: pytest.MonkeyPatch) -> None:
    """Scheduling 12."""
    patch.setattr(coordinator.Scheduler, "waits_for", lambda *_: "")


def the_watermark_is_not_clamped(patch: pytest.MonkeyPatch) -> None:
    """Scheduling 13."""
    patch.setattr(coordinator, "clamped", lambda _, found: found)


def a_life_has_to_wait_for_the_one_before(patch: pytest.MonkeyPatch) -> None:
    """Scheduling 14: its own old registration is in the way."""
    update = Captures.update

    def as_before(self: Captures, alive: Any) -> Any:
        kept = {id_: CaptureInfo(id_, self.known[id_].epoch) for id_ in alive if id_ in self.known}
        return update(self, {**alive, **kept})

    patch.setattr(Captures, "update", as_before)


def a_commit_under_way_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    def only_writers(status: Any) -> bool:
        return status.state is TableState.REPLICATING

    patch.setattr(coordinator, "may_write", only_writers)
    patch.setattr("tidegate.scheduling.replication.may_write", only_writers)


def promotion_at_a_stop_does_not_ask_who_else_may_write(patch: pytest.MonkeyPatch) -> None:
    """H6."""
    for reported in (TableState.STOPPED, TableState.ABSENT):
        careful, *rest = TRANSITIONS[SetState.COMMIT][Role.PRIMARY][reported]
        assert careful.when is When.SECONDARY_AND_UNDETERMINED
        patch.setitem(TRANSITIONS[SetState.COMMIT][Role.PRIMARY], reported, tuple(rest))


def spans_sort_by_either_key(patch: pytest.MonkeyPatch) -> None:
    """H11."""
    patch.setattr(Span, "__lt__", lambda a, b: a.start < b.start or str(a.table) < str(b.table))


def every_table_looks_at_all_spans(patch: pytest.MonkeyPatch) -> None:
    """Scheduling 15."""

    def wanted(_self: Reconciler, tables: Any, existing: Any) -> list[Span]:
        found = []
        for table in tables:
            here = {span.table: span for span in existing}
            found.append(here.get(table, Span(table)))
        return found

    patch.setattr(Reconciler, "wanted", wanted)


def who_does_not_answer_is_given_spans(patch: pytest.MonkeyPatch) -> None:
    def ready(self: View) -> list[str]:
        return sorted(c for c, s in self.captures.items() if s is CaptureState.INITIALIZED)

    patch.setattr(View, "ready", property(ready))


def a_span_that_fails_is_tried_on_the_same_capture(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(coordinator.Scheduler, "_failed", lambda _self, _capture, status: status)


def a_span_that_fails_is_tried_without_a_pause(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Attempts, "barred", lambda *_: {})


def a_second_failure_is_not_reported(patch: pytest.MonkeyPatch) -> None:
    say = Agent._say

    def once(self: Agent, known: _Known, status: Any) -> None:
        if not (known.said and known.said.state is TableState.ABSENT is status.state):
            say(self, known, status)

    patch.setattr(Agent, "_say", once)


def a_drain_passes_to_the_next_life(patch: pytest.MonkeyPatch) -> None:
    """Scheduling 8, 9: what was meant for an earlier life of the name."""
    heard = Agent._heard

    def by_name(self: Agent, beat: Any) -> None:
        heard(self, replace(beat, header=replace(beat.header, capture_epoch=self.epoch)))

    patch.setattr(Agent, "_heard", by_name)


def a_drain_cannot_be_taken_back(patch: pytest.MonkeyPatch) -> None:
    heard = Captures.heard

    def forgets(self: Captures, report: Any) -> bool:
        if report.sender in self.known:
            self.known[report.sender].returns = 0
        return heard(self, report)

    patch.setattr(Captures, "heard", forgets)


def a_move_that_cannot_be_is_dropped_without_a_word(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Move, "refuse", lambda *_: None)


def spans_that_overlap_are_all_wanted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        "tidegate.scheduling.reconciling.without_overlaps", lambda spans: (list(spans), [])
    )


@dataclass(frozen=True)
class Tooth:
    """A broken variant, and what finds it.

    Attributes:
        aim: faults that the simulation draws often.
        claims: tests that must fail instead of the simulation.
    """

    breaks: Callable[[pytest.MonkeyPatch], None]
    aim: tuple[str, ...] = ()
    claims: tuple[Callable[[], None], ...] = ()


def a_second_failure_is_answered() -> None:
    agents.test_a_span_that_cannot_begin_twice_is_answered_twice(agents.Lab())


TEETH: Final[list[Tooth]] = [
    Tooth(a_lost_span_is_not_replaced),
    Tooth(lives_are_not_told_apart),
    Tooth(lost_orders_are_not_repeated),
    Tooth(unknown_spans_are_placed_at_once),
    Tooth(promotion_waits_for_nobody),
    Tooth(holes_are_not_seen),
    Tooth(a_lease_never_ends),
    Tooth(nothing_is_placed_while_one_is_silent),
    Tooth(spans_are_not_wanted_again),
    Tooth(
        a_stopping_primary_is_forgotten,
        claims=(transitions.test_a_primary_that_stops_during_a_second_move_may_still_write,),
    ),
    Tooth(the_end_of_a_removal_by_death_is_not_seen, aim=("drop", "crash", "add")),
    Tooth(a_task_outlives_a_fall_back_to_absent),
    Tooth(the_limit_of_tasks_is_compared_with_equals),
    Tooth(errors_of_an_executor_vanish),
    Tooth(reports_of_spans_without_a_set_are_ignored),
    Tooth(
        the_end_of_a_secondary_in_commit_is_ignored,
        claims=(transitions.test_all_reporting_the_end_of_their_part_leaves_nothing_that_hangs,),
    ),
    Tooth(
        reports_are_judged_by_content,
        claims=(trouble.test_a_report_older_than_an_order_decides_nothing,),
    ),
    Tooth(late_orders_are_taken, aim=("delay", "move", "lose")),
    Tooth(reports_have_no_numbers),
    Tooth(the_last_one_gets_nothing_while_it_leaves),
    Tooth(a_stopping_capture_refuses_commits),
    Tooth(balancing_goes_on_while_somebody_leaves),
    Tooth(an_owner_that_hears_nobody_stays, aim=("cut", "cut_one_way", "join")),
    Tooth(silence_is_endless),
    Tooth(orders_outlive_the_life_of_their_capture, aim=("crash", "restart", "move")),
    Tooth(lives_of_a_workflow_are_not_told_apart, aim=("recreate", "delay")),
    Tooth(what_was_received_counts_as_applied),
    Tooth(nobody_knows_what_a_span_waits_for),
    Tooth(the_watermark_is_not_clamped),
    Tooth(a_life_has_to_wait_for_the_one_before),
    Tooth(
        a_commit_under_way_is_forgotten,
        claims=(transitions.test_a_new_owner_carries_on_with_a_commit_that_has_begun,),
    ),
    Tooth(
        promotion_at_a_stop_does_not_ask_who_else_may_write,
        claims=(transitions.test_a_secondary_waits_for_the_undetermined_when_the_primary_stops,),
    ),
    Tooth(spans_sort_by_either_key, claims=(transitions.test_spans_sort_by_table_then_key,)),
    Tooth(
        every_table_looks_at_all_spans,
        claims=(reconciling.test_many_new_tables_cost_each_tick_a_few_lookups_a_table,),
    ),
    Tooth(
        who_does_not_answer_is_given_spans,
        claims=(trouble.test_who_does_not_answer_is_given_no_span,),
    ),
    Tooth(
        a_span_that_fails_is_tried_on_the_same_capture,
        claims=(
            trouble.test_a_span_that_cannot_begin_on_one_capture_runs_on_another_and_stays_there,
        ),
    ),
    Tooth(
        a_span_that_fails_is_tried_without_a_pause,
        claims=(trouble.test_a_span_that_fails_everywhere_is_parked_with_its_reasons,),
    ),
    Tooth(a_second_failure_is_not_reported, claims=(a_second_failure_is_answered,)),
    Tooth(
        a_drain_passes_to_the_next_life,
        claims=(trouble.test_a_drain_ends_with_the_life_that_it_was_asked_of,),
    ),
    Tooth(
        a_drain_cannot_be_taken_back,
        claims=(trouble.test_a_drain_that_is_taken_back_gives_the_capture_spans_again,),
    ),
    Tooth(
        a_move_that_cannot_be_is_dropped_without_a_word,
        claims=(trouble.test_a_move_of_a_table_that_is_split_names_its_parts,),
    ),
    Tooth(
        spans_that_overlap_are_all_wanted,
        claims=(owner.test_overlapping_spans_are_stopped_and_placed_anew,),
    ),
]
