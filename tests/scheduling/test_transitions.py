"""The table of transitions: complete, and safe from whatever state it starts in."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from tidegate.scheduling.model import (
    Checkpoint,
    MultiplePrimaryError,
    Role,
    SetState,
    Span,
    SpanStatus,
    TableState,
)
from tidegate.scheduling.replication import OrderKind, ReplicationSet, rebuilt
from tidegate.scheduling.transitions import TRANSITIONS, Act, When

if TYPE_CHECKING:
    from collections.abc import Iterator

SPAN = Span("orders")
CAPTURES = ("a", "b", "c")


def status(state: TableState, checkpoint: int = 0, epoch: int = 0) -> SpanStatus:
    return SpanStatus(SPAN, state, Checkpoint(checkpoint, checkpoint), epoch=epoch)


def every_set() -> Iterator[ReplicationSet]:
    """All sets of at most three captures that can be."""
    for state in SetState:
        for roles in itertools.product([None, *Role], repeat=len(CAPTURES)):
            held = {c: role for c, role in zip(CAPTURES, roles, strict=True) if role}
            found = ReplicationSet(SPAN, Checkpoint(5, 5), state, held)
            try:
                found.check()
            except AssertionError:
                continue
            yield found


SETS = list(every_set())


def steps(before: ReplicationSet) -> Iterator[tuple[str, TableState, ReplicationSet, list[str]]]:
    for by, reported in itertools.product([*CAPTURES, "stranger"], TableState):
        try:
            after, sends = before.reported(by, status(reported, 7))
        except MultiplePrimaryError:
            continue
        yield by, reported, after, [f"{send.kind} {send.to}" for send in sends]


def test_every_state_role_and_report_has_rules_and_one_always_holds() -> None:
    for state in SetState:
        assert set(TRANSITIONS[state]) == {*Role, None}
        for rules_by_report in TRANSITIONS[state].values():
            assert set(rules_by_report) == set(TableState)
            for rules in rules_by_report.values():
                assert [rule.when for rule in rules].count(When.ALWAYS) == 1
                assert rules[-1].when is When.ALWAYS


def test_impossible_rows_are_those_that_no_set_reaches() -> None:
    reached = {(s.state, role) for s in SETS for role in s.roles.values()}
    for state, role in itertools.product(SetState, Role):
        rows = TRANSITIONS[state][role].values()
        impossible = all(Act.IMPOSSIBLE in rule.acts for rules in rows for rule in rules)
        assert impossible == ((state, role) not in reached), (state, role)


@pytest.mark.parametrize("before", SETS, ids=lambda s: f"{s.state}-{'-'.join(s.roles.values())}")
def test_no_report_leads_out_of_what_can_be(before: ReplicationSet) -> None:
    for by, reported, after, sent in steps(before):
        after.check()
        assert len(sent) <= 1, (by, reported, sent)
        assert after.checkpoint.checkpoint >= before.checkpoint.checkpoint


@pytest.mark.parametrize("before", SETS, ids=lambda s: f"{s.state}-{'-'.join(s.roles.values())}")
def test_nobody_is_promoted_beside_one_who_may_write(before: ReplicationSet) -> None:
    for by, reported, after, sent in steps(before):
        for each in sent:
            kind, to = each.split()
            if kind != OrderKind.COMMIT or before.primary == to:
                continue
            ended = by if reported in {TableState.ABSENT, TableState.STOPPED} else None
            others = set(before.roles) - {to, ended}
            others = {c for c in others if before.roles[c] is not Role.SECONDARY}
            assert not others, (before, by, reported, after)


def test_a_capture_that_may_write_keeps_a_role_until_it_has_stopped() -> None:
    for before in SETS:
        for by, reported, after, _ in steps(before):
            if reported is TableState.REPLICATING or (
                reported is TableState.STOPPING and before.roles.get(by) is not Role.SECONDARY
            ):
                assert by in after.roles, (before, by, reported)


def test_all_reporting_the_end_of_their_part_leaves_nothing_that_hangs() -> None:
    """Scheduling 1: the secondary stops while the move is being committed."""
    for before in SETS:
        if before.state in {SetState.ABSENT, SetState.REPLICATING}:
            continue
        for order in itertools.permutations(before.roles):
            found = before
            for capture in order:
                found, _ = found.capture_down(capture)
            assert found.state is SetState.ABSENT or found.is_removed, (before, order)


def test_a_primary_that_stops_during_a_second_move_may_still_write() -> None:
    """Hazard H1."""
    moving, _ = rebuilt(SPAN, 0, {"1": status(TableState.REPLICATING)}).move("2")
    stopping, _ = moving.reported("1", status(TableState.STOPPING))
    assert stopping.roles == {"1": Role.UNDETERMINED, "2": Role.SECONDARY}
    waiting, sends = stopping.reported("2", status(TableState.PREPARED))
    assert sends == ()
    free, _ = waiting.reported("1", status(TableState.STOPPED))
    _, sends = free.reported("2", status(TableState.PREPARED))
    assert [(send.to, send.kind) for send in sends] == [("2", OrderKind.COMMIT)]


def test_a_primary_that_lost_the_span_is_replaced() -> None:
    """Hazard H2."""
    found = rebuilt(SPAN, 0, {"1": status(TableState.REPLICATING, 5)})
    lost, _ = found.reported("1", status(TableState.ABSENT))
    assert (lost.state, lost.checkpoint.checkpoint) == (SetState.ABSENT, 5)


def test_a_removal_ends_when_its_last_capture_dies() -> None:
    """Hazard H3."""
    found, _ = rebuilt(SPAN, 0, {"1": status(TableState.STOPPING)}).capture_down("1")
    assert found.is_removed


def test_a_secondary_waits_for_the_undetermined_when_the_primary_stops() -> None:
    """Hazard H6."""
    roles = {"1": Role.PRIMARY, "2": Role.SECONDARY, "3": Role.UNDETERMINED}
    found = ReplicationSet(SPAN, Checkpoint(), SetState.COMMIT, roles)
    after, sends = found.reported("1", status(TableState.STOPPED))
    assert (after.state, sends) == (SetState.COMMIT, ())


def test_a_stranger_that_writes_is_stopped() -> None:
    """Hazard H10."""
    found = rebuilt(SPAN, 0, {"1": status(TableState.REPLICATING)})
    after, sends = found.reported("2", status(TableState.REPLICATING))
    assert after.roles["2"] is Role.UNDETERMINED
    assert [(send.to, send.kind) for send in sends] == [("2", OrderKind.REMOVE)]


def test_spans_sort_by_table_then_key() -> None:
    """Hazard H11."""
    spans = [Span("b", "1", "2"), Span("a", "5", "6"), Span("b", "0", "1"), Span("a", "7", "8")]
    assert [(s.table, s.start) for s in sorted(spans)] == [
        ("a", "5"),
        ("a", "7"),
        ("b", "0"),
        ("b", "1"),
    ]


def test_a_new_owner_carries_on_with_a_commit_that_has_begun() -> None:
    begun = {"1": status(TableState.PREPARED, 3, epoch=9), "2": status(TableState.PREPARED)}
    found = rebuilt(SPAN, 0, begun)
    assert (found.state, found.primary, found.secondary) == (SetState.COMMIT, "1", "2")


def test_only_one_of_several_that_prepare_goes_on() -> None:
    preparing = {"1": status(TableState.PREPARING), "2": status(TableState.PREPARED)}
    found = rebuilt(SPAN, 0, preparing)
    assert found.roles == {"1": Role.UNDETERMINED, "2": Role.SECONDARY}
