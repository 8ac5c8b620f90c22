"""An owner and its captures, over a transport that loses nothing unless told to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.make_owner_lab import FAST, Lab
from tidegate.errors import NotFoundError
from tidegate.scheduling.agent import _Known
from tidegate.scheduling.barriers import TABLES_MAX, Waiting, barrier_of
from tidegate.scheduling.messages import Heartbeat, Order, Report
from tidegate.scheduling.model import (
    CHECKPOINT_CANNOT_PROCEED,
    BarrierWithMin,
    CaptureInfo,
    Checkpoint,
    Query,
    SetState,
    Span,
    TableState,
    Watermark,
)
from tidegate.scheduling.watermark import Behind, Redo, clamped, is_covered


def test_spans_are_placed_evenly_and_the_watermark_begins() -> None:
    lab = Lab("a", "b")
    lab.step()
    assert lab.mark.checkpoint == CHECKPOINT_CANNOT_PROCEED
    lab.step(8)
    assert lab.loads() == {"a": 2, "b": 2}
    assert lab.mark.checkpoint == 7


def test_a_drain_of_another_node_is_asked_for_until_nothing_is_left() -> None:
    lab = Lab("a", "b")
    lab.step(8)
    query = Query("b")
    lab.owner.answer(query)
    assert query.current_table_count == 2
    lab.step(12)
    lab.owner.answer(query)
    assert query.current_table_count == 0
    assert lab.loads() == {"a": 4, "b": 0}
    with pytest.raises(NotFoundError):
        lab.owner.drain_capture("x")


def test_the_drain_of_the_last_capture_ends_by_itself() -> None:
    """Scheduling 3: a draining owner gets spans when nobody else is there."""
    lab = Lab("a", "b")
    lab.step(8)
    lab.owner.drain_capture("b")
    lab.step(3)
    del lab.agents["a"], lab.spans["a"]
    lab.elect("b")
    lab.step(12)
    assert lab.owner.drain.target is None
    assert lab.loads() == {"b": 4}


def test_nothing_is_balanced_while_somebody_leaves_or_has_just_come() -> None:
    """Scheduling 5."""
    lab = Lab("a", "b", settings=replace(FAST, settle_ticks=30))
    lab.step(8)
    lab.join("c")
    lab.step(15)
    assert lab.loads()["c"] == 0
    lab.tables.append("t4")
    lab.tables.append("t5")
    lab.agents["b"].stop()
    lab.step(12)
    assert lab.loads()["b"] == 0


def test_an_owner_that_hears_nobody_says_so_and_a_single_silent_capture_is_named() -> None:
    """Scheduling 6: in one direction too."""
    lab = Lab("a", "b", "c")
    lab.step(8)
    lab.mute = {"b"}
    lab.step(10)
    assert lab.owner.silent_captures == ["b"]
    assert not lab.owner.is_cut_off
    lab.mute = {"b", "c"}
    lab.step(10)
    assert lab.owner.is_cut_off


def test_one_stuck_capture_blocks_neither_moves_nor_the_loss_of_another() -> None:
    """Scheduling 7: spans that are known go on."""
    lab = Lab("a", "b", "c")
    lab.step(8)
    lab.join("d")
    lab.deaf = {"d"}
    lab.step(3)
    del lab.agents["c"], lab.spans["c"]
    lab.step(8)
    assert sum(lab.loads().values()) == 4
    assert not lab.owner.is_initialized


def test_a_move_ends_with_the_life_of_its_destination() -> None:
    """Scheduling 8: also when another life has the same name."""
    lab = Lab("a", "b")
    lab.step(8)
    span = next(s for s, f in lab.owner.placement.sets.items() if f.primary == "a")
    lab.spans["b"].is_slow = True
    lab.owner.move_table(span, "b")
    lab.step(3)
    assert lab.owner.placement.sets[span].state is SetState.PREPARE
    assert lab.owner.waits_for(span) == "b to prepare"
    lab.join("b", life="2")
    lab.step(10)
    assert lab.owner.placement.sets[span].state is SetState.REPLICATING
    assert (lab.owner.move.pending, lab.owner.placement.running) == ({}, {})
    assert sum(lab.loads().values()) == 4


def test_a_worker_of_an_earlier_life_of_the_workflow_is_not_heard() -> None:
    """Scheduling 10."""
    lab = Lab("a")
    lab.step(4)
    header = replace(lab.owner.header, workflow_epoch=4, capture_epoch="a1")
    before = lab.owner.captures.known["a"].number
    lab.wire.inbox = [Report("a", "a", header, 99)]
    lab.owner.tick(0, [], {"a": CaptureInfo("a", "a1")}, BarrierWithMin.at(1))
    assert lab.owner.captures.known["a"].number == before


def test_a_writer_gets_an_epoch_and_a_reported_checkpoint_is_only_a_lower_bound() -> None:
    """Scheduling 11: positions come from the target; what is passed on never exceeds a report."""
    lab = Lab("a", "b")
    lab.step(8)
    span = next(s for s, f in lab.owner.placement.sets.items() if f.primary == "a")
    before = lab.spans["a"].epochs[span]
    lab.spans["a"].checkpoints[span] = Checkpoint(40, 50)
    lab.owner.move_table(span, "b")
    lab.step(8)
    assert lab.spans["b"].epochs[span] > before
    assert lab.spans["b"].checkpoints[span] == Checkpoint(40, 50)


def test_what_a_span_waits_for_is_said() -> None:
    """Scheduling 12: a watchdog must not restart what waits for its turn."""
    lab = Lab("a", "b")
    lab.deaf = {"b"}
    lab.step(3)
    assert lab.owner.waits_for(Span("t0")) == "an answer of b"
    lab.deaf = set()
    lab.step(8)
    assert lab.owner.waits_for(Span("t0")) == ""


def test_what_was_published_is_never_taken_back() -> None:
    """Scheduling 13: the final clamp."""
    assert clamped(Watermark(9, 12, 1), Watermark(8, 8, 0)) == Watermark(9, 12, 1)
    assert not clamped(Watermark(9, 12, 1), Watermark()).can_proceed


@pytest.mark.parametrize("durable", [7, 0])
def test_the_watermark_stands_while_a_barrier_or_the_durable_one_is_behind(durable: int) -> None:
    """Situation 13: what is behind is named, and changes nothing that was published."""
    lab = Lab("a")
    lab.step(8)
    for executor in lab.spans.values():
        executor.checkpoints = dict.fromkeys(executor.states, Checkpoint(30, 30))
    lab.step(8)
    assert (lab.mark.checkpoint, lab.owner.behind) == (30, None)
    alive = {"a": CaptureInfo("a", "a1")}
    late = lab.owner.tick(durable, lab.tables, alive, BarrierWithMin.at(20))
    assert late.checkpoint == 30
    assert lab.owner.behind == Behind(30, 20)


def test_a_span_behind_what_was_published_is_named() -> None:
    """Situation 13: a table that is added begins where the durable checkpoint is."""
    lab = Lab("a")
    lab.step(8)
    for executor in lab.spans.values():
        executor.checkpoints = dict.fromkeys(executor.states, Checkpoint(30, 30))
    lab.step(8)
    lab.tables.append("late")
    lab.step()
    assert lab.mark.checkpoint == 30
    assert lab.owner.behind == Behind(30, 7, Span("late"))


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.booleans()),
        max_size=30,
    )
)
def test_whatever_the_caller_passes_what_is_published_never_falls(
    ticks: list[tuple[int, int, int, bool]],
) -> None:
    """Situation 13."""
    lab = Lab("a", tables=1)
    lab.step(4)
    published = Watermark()
    for durable, barrier, at, has_redo in ticks:
        spans = lab.spans["a"]
        spans.checkpoints = dict.fromkeys(spans.states, Checkpoint(at, at))
        for agent in lab.agents.values():
            lab.wires["a"].inbox += lab.wire.sent
            lab.wire.sent.clear()
            agent.tick()
            lab.wire.inbox += lab.wires["a"].sent
            lab.wires["a"].sent.clear()
        mark = lab.owner.tick(
            durable,
            lab.tables,
            {"a": CaptureInfo("a", "a1")},
            BarrierWithMin.at(barrier),
            redo=Redo(at) if has_redo else None,
        )
        if mark.can_proceed:
            assert mark.checkpoint >= published.checkpoint
            assert mark.resolved >= max(published.resolved, mark.checkpoint)
            published = mark


@pytest.mark.parametrize(
    "found", [("", "p", "h", ""), ("", "", "h", "p"), ("", "h", "", ""), ("", "h", "p", "h")]
)
def test_spans_that_overlap_are_stopped_until_they_tile_the_table(
    found: tuple[str, str, str, str],
) -> None:
    """Invariant 4: an owner that finds what two others made goes on, and says what is wrong."""
    lab = Lab("a", "b", tables=1)
    one, other = Span("t0", *found[:2]), Span("t0", *found[2:])
    for name, span in (("a", one), ("b", other)):
        lab.spans[name].states[span] = TableState.REPLICATING
        lab.agents[name]._known[span] = _Known(epoch=1)
    lab.step(2)
    assert "overlap" in str(lab.owner.faults["t0"])
    assert not lab.mark.can_proceed
    lab.step(20)
    spans = sorted(span for each in lab.spans.values() for span in each.states)
    assert is_covered(spans), spans
    assert spans == sorted(lab.owner.placement.sets)
    assert lab.owner.faults == {}
    assert lab.mark.can_proceed


def test_overlapping_spans_are_stopped_and_placed_anew() -> None:
    """Invariant 4: two writers of the same keys do not last."""
    test_spans_that_overlap_are_stopped_until_they_tile_the_table(("", "p", "h", ""))


def test_a_node_that_comes_back_is_ready_at_its_first_answer() -> None:
    """Scheduling 14: an old registration of its own is no obstacle."""
    lab = Lab("a", "b")
    lab.step(8)
    lab.join("b", life="2")
    lab.step(3)
    assert "b" in lab.owner.captures.ready()


def test_many_spans_start_within_few_ticks_and_are_taken_over_in_one_report() -> None:
    """Scheduling 15: start and take-over are part of what is held small."""
    lab = Lab("a", "b", tables=600, settings=replace(FAST, add_batch=200))
    lab.step(12)
    assert sum(lab.loads().values()) == 600
    lab.elect("b")
    lab.step(4)
    states = {found.state for found in lab.owner.placement.sets.values()}
    assert (len(lab.owner.placement.sets), states) == (600, {SetState.REPLICATING})


def test_an_orphan_that_writes_is_stopped() -> None:
    """Hazard H10: of two writers the one with the older epoch."""
    lab = Lab("a", "b")
    lab.step(8)
    span = next(s for s, f in lab.owner.placement.sets.items() if f.primary == "a")
    lab.spans["b"].states[span] = TableState.REPLICATING
    lab.agents["b"]._known[span] = type(next(iter(lab.agents["a"]._known.values())))()
    lab.step(8)
    assert span not in lab.spans["b"].states
    assert lab.spans["a"].states[span] is TableState.REPLICATING


def test_idle_spans_are_not_reported_again_and_again() -> None:
    lab = Lab("a")
    lab.step(12)
    listed = 0
    for _ in range(10):
        lab.owner.tick(7, lab.tables, {"a": CaptureInfo("a", "a1")}, BarrierWithMin.at(9))
        beats = [m for m in lab.wire.sent if isinstance(m, Heartbeat)]
        assert not [m for m in lab.wire.sent if isinstance(m, Order)]
        lab.wires["a"].inbox += lab.wire.sent
        lab.wire.sent.clear()
        lab.agents["a"].tick()
        for report in lab.wires["a"].sent:
            assert isinstance(report, Report)
            listed += len(report.statuses) if not report.is_full else 0
        lab.wire.inbox += lab.wires["a"].sent
        lab.wires["a"].sent.clear()
        assert all(beat.spans == () for beat in beats)
    assert listed == 0


def test_a_barrier_has_room_for_so_many_tables_and_bounds_all_by_the_next() -> None:
    waiting = [Waiting(100 + n, (f"t{n}",)) for n in range(TABLES_MAX + 3)]
    found = barrier_of(10_000, waiting)
    assert len(found.barrier.tables) == TABLES_MAX
    assert found.barrier.global_ts == 100 + TABLES_MAX
    assert found.min_table_ts == 100
