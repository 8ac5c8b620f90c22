"""What a capture does with orders, and what it reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scheduling.make_span_world import Spans, Wire
from tidegate.scheduling.agent import FULL_EVERY, Agent
from tidegate.scheduling.messages import Header, Heartbeat, Order, Report
from tidegate.scheduling.model import Barrier, Checkpoint, Liveness, Span, TableState
from tidegate.scheduling.replication import OrderKind

if TYPE_CHECKING:
    from tidegate.scheduling.messages import Message

T = Span("t")
HEAD = Header(3, 7, "life")


class Lab:
    def __init__(self) -> None:
        self.spans, self.wire = Spans(), Wire()
        self.agent = Agent("a", "life", self.spans, self.wire, workflow_epoch=7)

    def tick(self, *messages: Message) -> Barrier | None:
        self.wire.inbox += messages
        self.wire.sent.clear()
        return self.agent.tick()

    def report(self) -> Report:
        (found,) = self.wire.sent
        assert isinstance(found, Report)
        return found

    def states(self) -> dict[Span, TableState]:
        return {each.span: each.state for each in self.report().statuses}


@pytest.fixture
def lab() -> Lab:
    return Lab()


def order(kind: OrderKind, epoch: int, header: Header = HEAD, checkpoint: int = 1) -> Order:
    return Order("o", "a", header, T, kind, epoch, Checkpoint(checkpoint, checkpoint))


def beat(
    header: Header = HEAD, *, sender: str = "o", wants_full: bool = False, **more: int
) -> Heartbeat:
    return Heartbeat(sender, "a", header, wants_full=wants_full, **more)  # type: ignore[arg-type]


def run(lab: Lab) -> None:
    lab.tick(order(OrderKind.PREPARE, 1))
    lab.tick(order(OrderKind.COMMIT, 2))
    assert lab.spans.states[T] is TableState.REPLICATING


def test_orders_are_carried_out_and_reported_without_being_asked(lab: Lab) -> None:
    lab.tick(order(OrderKind.PREPARE, 1))
    assert lab.states() == {T: TableState.PREPARED}
    lab.tick(order(OrderKind.COMMIT, 2, checkpoint=9))
    assert lab.states() == {T: TableState.REPLICATING}
    assert (lab.spans.epochs[T], lab.spans.checkpoints[T].checkpoint) == (2, 9)
    lab.tick(order(OrderKind.REMOVE, 3))
    (stopped,) = lab.report().statuses
    assert (stopped.state, stopped.checkpoint.checkpoint) == (TableState.STOPPED, 9)


def test_a_doubled_or_late_order_is_taken_once(lab: Lab) -> None:
    """Scheduling 2: an order is idempotent by its number."""
    run(lab)
    lab.tick(order(OrderKind.REMOVE, 3))
    lab.tick(order(OrderKind.COMMIT, 2), order(OrderKind.PREPARE, 1), order(OrderKind.REMOVE, 3))
    assert T not in lab.spans.states
    assert lab.agent.refused["an older order"] == 3


def test_a_late_order_is_known_after_the_span_is_forgotten(lab: Lab) -> None:
    run(lab)
    lab.tick(order(OrderKind.REMOVE, 3))
    for _ in range(4):
        number = lab.report().number if lab.wire.sent else 0
        lab.tick(beat(acked=number, floor=4))
    assert lab.agent._known == {}
    lab.tick(order(OrderKind.COMMIT, 2))
    assert T not in lab.spans.states


def test_the_last_checkpoint_is_repeated_until_it_has_arrived(lab: Lab) -> None:
    """Scheduling 13: a lost report must not lose how far the span was."""
    run(lab)
    lab.tick(order(OrderKind.REMOVE, 3))
    for _ in range(3):
        lab.tick(beat())
        (stopped,) = lab.report().statuses
        assert stopped.state is TableState.STOPPED
    lab.tick(beat(acked=lab.report().number))
    lab.tick(beat())
    assert lab.states() == {T: TableState.ABSENT}


def test_a_stopping_capture_finishes_a_move_that_has_begun(lab: Lab) -> None:
    """Scheduling 4: it still accepts the second half."""
    lab.tick(order(OrderKind.PREPARE, 1))
    lab.agent.stop()
    lab.tick(order(OrderKind.COMMIT, 2))
    assert lab.spans.states[T] is TableState.REPLICATING
    assert lab.report().liveness is Liveness.STOPPING


@pytest.mark.parametrize(
    "header", [Header(2, 7, "life"), Header(3, 8, "life"), Header(3, 7, "another")]
)
def test_orders_of_others_are_refused(lab: Lab, header: Header) -> None:
    """Scheduling 8, 10: orders end with the life of the owner, the workflow and the capture."""
    lab.tick(beat())
    lab.tick(order(OrderKind.PREPARE, 1, header))
    assert T not in lab.spans.states


def test_two_owners_of_one_revision_are_not_both_followed(lab: Lab) -> None:
    lab.tick(beat())
    assert lab.tick(beat(sender="other")) is None
    assert lab.agent.owner == ("o", 3)


def test_a_new_owner_gets_everything_and_the_old_ones_open_commits_end(lab: Lab) -> None:
    lab.spans.is_slow = True
    lab.tick(order(OrderKind.PREPARE, 1))
    lab.tick(order(OrderKind.COMMIT, 2))
    lab.tick(beat(Header(4, 7), sender="new"))
    assert lab.report().is_full
    lab.spans.is_slow = False
    lab.spans.states[T] = TableState.PREPARED
    lab.tick()
    assert lab.spans.states[T] is TableState.PREPARED


def test_a_span_that_cannot_begin_is_absent_and_its_error_is_kept(lab: Lab) -> None:
    """Hazard H9."""
    lab.spans.fails = True
    lab.tick(order(OrderKind.PREPARE, 1))
    (status,) = lab.report().statuses
    assert (status.state, status.order) == (TableState.ABSENT, 1)
    assert "away" in str(lab.agent.failures[T])


def test_a_span_that_cannot_begin_twice_is_answered_twice(lab: Lab) -> None:
    """Situation 1: the owner asks again, and waits for an answer to that very order."""
    lab.spans.fails = True
    lab.tick(order(OrderKind.PREPARE, 1))
    first = lab.report()
    lab.tick(beat(acked=first.number))
    lab.tick(order(OrderKind.PREPARE, 2), beat(acked=first.number))
    (status,) = lab.report().statuses
    assert (status.state, status.order) == (TableState.ABSENT, 2)


def test_only_what_changed_is_reported_until_a_full_report_is_due(lab: Lab) -> None:
    run(lab)
    lab.tick(beat(acked=lab.report().number))
    fulls = 0
    for _ in range(2 * FULL_EVERY):
        lab.tick(beat(acked=lab.report().number))
        fulls += lab.report().is_full
        assert bool(lab.report().statuses) is lab.report().is_full
    assert fulls == 2


def test_the_barrier_is_that_of_the_last_heartbeat(lab: Lab) -> None:
    first = Heartbeat("o", "a", HEAD, barrier=Barrier(5))
    second = Heartbeat("o", "a", HEAD, barrier=Barrier(6))
    assert lab.tick(first, second) == Barrier(6)
    assert lab.tick() is None
    lab.agent.close()
    assert lab.wire.is_closed
