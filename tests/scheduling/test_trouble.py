"""What an owner does with captures and spans that fail, fall silent, or are asked for too much."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from scheduling.make_owner_lab import FAST, Lab
from tidegate.errors import NotFoundError
from tidegate.scheduling.captures import CaptureState
from tidegate.scheduling.messages import Report
from tidegate.scheduling.model import (
    BarrierWithMin,
    CaptureInfo,
    Liveness,
    Role,
    SetState,
    Span,
    SpanStatus,
    TableState,
)
from tidegate.scheduling.placement import Burst
from tidegate.scheduling.replication import ReplicationSet, rebuilt
from tidegate.scheduling.schedulers import REFUSED_MAX, Basic, Drain, Move, View, balancing

if TYPE_CHECKING:
    from tidegate.scheduling.placement import Task

T0 = Span("t0")


def placed(lab: Lab, span: Span = T0) -> str:
    return lab.owner.placement.sets[span].primary or ""


def other_than(lab: Lab, capture: str) -> str:
    return next(name for name in lab.agents if name != capture)


def test_a_report_older_than_an_order_decides_nothing() -> None:
    """Situation 2: with slow links a report contradicts the order that was just sent."""
    lab = Lab("a", tables=1)
    for _ in range(6):
        lab.step()
        found = lab.owner.placement.sets.get(T0)
        if found and found.state is SetState.COMMIT:
            break
    before = lab.owner.placement.sets[T0]
    assert (before.state, before.roles) == (SetState.COMMIT, {"a": Role.PRIMARY})
    header = replace(lab.owner.header, capture_epoch="a1")
    lab.wire.inbox = [Report("a", "a", header, 99)]  # it has no span, it says
    lab.owner.tick(7, lab.tables, {"a": CaptureInfo("a", "a1")}, BarrierWithMin.at(10**6))
    assert lab.owner.placement.sets[T0] == before


def test_a_span_that_cannot_begin_on_one_capture_runs_on_another_and_stays_there() -> None:
    """A worker that cannot connect from one node could from another."""
    lab = Lab("a", "b", "c", tables=3)
    lab.spans["a"].fails = True
    lab.step(12)
    assert lab.loads()["a"] == 0
    assert sum(lab.loads().values()) == 3
    begun = sum(lab.spans[name].begun for name in "bc")
    lab.step(60)
    assert sum(lab.spans[name].begun for name in "bc") == begun
    assert lab.spans["a"].begun < 3 * 60 / FAST.retry_ticks


def test_a_span_that_fails_everywhere_is_parked_with_its_reasons() -> None:
    lab = Lab("a", "b", tables=1)
    for spans in lab.spans.values():
        spans.fails = True
    lab.step(120)
    tried = [spans.begun for spans in lab.spans.values()]
    assert all(3 <= times <= 120 / FAST.retry_max_ticks + 4 for times in tried), tried
    assert [each.capture for each in lab.owner.failures_of(T0)] == ["a", "b"]
    assert lab.owner.waits_for(T0).count("the source is away") == 2
    for spans in lab.spans.values():
        spans.fails = False
    lab.step(FAST.retry_max_ticks + 8)
    assert sum(lab.loads().values()) == 1
    assert lab.owner.failures_of(T0) == []
    assert lab.owner.waits_for(T0) == ""


def test_a_move_whose_destination_cannot_begin_is_named_and_the_writer_stays() -> None:
    lab = Lab("a", "b", tables=1)
    lab.step(8)
    here = placed(lab)
    there = other_than(lab, here)
    lab.spans[there].fails = True
    assert lab.owner.move_table(T0, there)
    lab.step(8)
    assert placed(lab) == here
    assert lab.owner.placement.sets[T0].state is SetState.REPLICATING
    assert "away" in lab.owner.move.refused[T0].reason


@pytest.mark.parametrize(
    ("span", "to", "reason"),
    [
        (T0, "x", "x is not there"),
        (Span("unknown"), "b", "unknown is not placed"),
        (T0, "", "has t0"),
        (T0, "silent", "silent does not answer"),
    ],
)
def test_a_move_that_cannot_be_is_refused_by_name(span: Span, to: str, reason: str) -> None:
    lab = Lab("a", "b", "silent", tables=3)
    lab.step(8)
    lab.mute = {"silent"}
    lab.step(FAST.quiet_ticks + 2)
    lab.owner.move_table(span, to or placed(lab))
    lab.step()
    assert lab.owner.move.pending == {}
    assert reason in lab.owner.move.refused[span].reason


def test_a_move_of_a_table_that_is_split_names_its_parts() -> None:
    sets = {span: replicating(span, "a") for span in (Span("t", "", "m"), Span("t", "m"))}
    captures = dict.fromkeys("ab", CaptureState.INITIALIZED)
    move = Move()
    move.request(Span("t"), "b")
    assert move.schedule(View(0, list(sets), captures, sets)) == []
    assert "move one of t[,m), t[m,)" in move.refused[Span("t")].reason


def test_refusals_are_kept_up_to_a_bound() -> None:
    move = Move()
    for number in range(REFUSED_MAX + 5):
        move.refuse(Span(number), "b", "no")
    assert len(move.refused) == REFUSED_MAX
    assert Span(0) not in move.refused


def replicating(span: Span, capture: str) -> ReplicationSet:
    return rebuilt(span, 0, {capture: SpanStatus(span, TableState.REPLICATING)})


def destinations(tasks: list[Task]) -> set[str]:
    found: set[str] = set()
    for task in tasks:
        found |= {each.capture for each in (task.tasks if isinstance(task, Burst) else (task,))}
    return found


def test_who_does_not_answer_is_given_no_span() -> None:
    """Situation 7: by none of the schedulers."""
    spans = [Span(number) for number in range(9)]
    captures = dict.fromkeys("abcd", CaptureState.INITIALIZED)
    sets = {span: replicating(span, "a") for span in spans}
    view = View(0, spans, captures, sets, quiet={"d"})
    assert destinations(Basic().schedule(replace(view, sets={}))) == {"a", "b", "c"}
    drain = Drain()
    drain.set_target("a")
    assert destinations(drain.schedule(view)) == {"b", "c"}
    assert destinations(list(balancing(view, limit=9))) == {"b", "c"}
    drain.target = "d"
    from_quiet = {span: replicating(span, "d") for span in spans}
    assert drain.schedule(replace(view, sets=from_quiet)) == []
    assert balancing(replace(view, sets=from_quiet), limit=9) == []


def liveness(lab: Lab, capture: str) -> Liveness:
    return lab.agents[capture].liveness


def test_a_drain_that_is_taken_back_gives_the_capture_spans_again() -> None:
    lab = Lab("a", "b", tables=4)
    lab.step(8)
    lab.owner.drain_capture("b")
    lab.step(14)
    assert lab.loads() == {"a": 4, "b": 0}
    assert liveness(lab, "b") is Liveness.STOPPING
    lab.owner.undrain_capture("b")
    lab.step(20)
    assert liveness(lab, "b") is Liveness.ALIVE
    assert lab.owner.drain.target is None
    assert lab.loads() == {"a": 2, "b": 2}
    lab.owner.drain_capture("b")
    lab.step(14)
    assert lab.loads() == {"a": 4, "b": 0}
    with pytest.raises(NotFoundError):
        lab.owner.undrain_capture("x")


def test_a_capture_that_wants_to_go_itself_goes_though_its_drain_is_taken_back() -> None:
    """Situation 4."""
    lab = Lab("a", "b", tables=4)
    lab.step(8)
    lab.agents["b"].stop()
    lab.step(2)
    lab.owner.undrain_capture("b")
    lab.step(16)
    assert lab.loads() == {"a": 4, "b": 0}


def test_a_drain_ends_with_the_life_that_it_was_asked_of() -> None:
    """Situations 8 and 9: the next life of that name has not been asked to go."""
    lab = Lab("a", "b", tables=4)
    lab.step(8)
    lab.agents["b"].stop()
    lab.step(3)
    late = [m for m in lab.wire.sent if m.to == "b"]
    lab.owner._beat(["b"], lab.owner.progress.barrier, collect_stats=False)
    late += [m for m in lab.owner._outbox if m.to == "b"]
    lab.owner._outbox.clear()
    lab.join("b", life="2")
    lab.wires["b"].inbox += late
    lab.step(20)
    assert lab.agents["b"].liveness is Liveness.ALIVE
    assert lab.owner.drain.ended == "b has gone"
    assert lab.loads() == {"a": 2, "b": 2}
