"""A plan that is interrupted anywhere ends where it should have, or where it began."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate import steps
from tidegate.backoff import Backoff
from tidegate.errors import OutcomeUnknownError, TidegateError
from tidegate.operations import executor
from tidegate.operations.plan import Plan, PlanStep, StepTable, Zone

NAMES = [
    steps.declare(f"test.executor.{n}", runs_in="node", plan="test", description=f"step {n}")
    for n in range(8)
]


class Killed(BaseException):
    """The process is gone: nothing after this runs, no handler catches it."""


@dataclass
class World:
    """Effects that exist; the journal marks the point of no return."""

    effects: set[str] = field(default_factory=set)
    dies_after: int = 10**9  # effects until the process dies
    fails_at: str = ""
    fails_undo: str = ""
    blind: bool = False

    def tick(self) -> None:
        self.dies_after -= 1
        if self.dies_after < 0:
            raise Killed

    def do(self, step: PlanStep) -> None:
        if step.name == self.fails_at:
            self.fails_at = ""
            raise TidegateError("the step failed")
        self.effects.add(step.name)
        self.tick()

    def undo(self, step: PlanStep) -> None:
        if step.name == self.fails_undo:
            raise TidegateError("the undo failed")
        self.effects.discard(step.name)
        self.tick()

    def point_reached(self) -> bool:
        if self.blind:
            raise TidegateError("the source cannot be seen")
        return any(name in self.effects for name in POINTS)


POINTS: set[str] = set()


@dataclass
class Record:
    """The operation as the cluster database has it."""

    state: str = "running"
    events: list[tuple[str, str]] = field(default_factory=list)

    def note(self, step: PlanStep, what: str, took_s: float) -> None:
        assert took_s >= 0
        self.events.append((step.name, what))

    def undoing(self, error: str) -> None:
        assert error
        self.state = "undoing"

    def unfinished(self, error: str) -> None:
        assert error

    def finished(self) -> None:
        self.state = "finished"

    def undone(self) -> None:
        self.state = "undone"


def plan_of(before: int, after: int) -> Plan:
    made = [PlanStep(NAMES[n], (f"do {n}",), Zone.BEFORE, undoable=True) for n in range(before)]
    made.append(PlanStep(NAMES[before], ("point",), Zone.POINT))
    made += [PlanStep(NAMES[before + 1 + n], (f"after {n}",), Zone.AFTER) for n in range(after)]
    POINTS.clear()
    POINTS.add(NAMES[before])
    return Plan("test", tuple(made))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "AFTER_BACKOFF", Backoff(1e-6, 1e-6))


@settings(max_examples=300, deadline=None)
@given(
    before=st.integers(0, 4),
    after=st.integers(0, 3),
    deaths=st.lists(st.integers(0, 7), max_size=4),
    data=st.data(),
)
def test_an_interrupted_plan_reaches_its_end_or_its_beginning(
    before: int, after: int, deaths: list[int], data: st.DataObject
) -> None:
    plan = plan_of(before, after)
    world, record = World(), Record()
    world.fails_at = data.draw(st.sampled_from(["", *(s.name for s in plan.steps)]))
    started = False
    for death in [*deaths, 10**9]:
        world.dies_after = death
        try:
            if not started:
                started = True
                executor.run(plan, world, record)
            elif record.state not in {"finished", "undone"}:
                executor.resume(plan, world, record, reason="the node restarted")
        except Killed:
            continue
        except TidegateError:
            continue
    everything = {step.name for step in plan.steps}
    if record.state == "finished":
        assert world.effects >= {s.name for s in plan.steps if s.zone is not Zone.BEFORE}
        if not deaths:
            assert world.effects == everything
    else:
        assert record.state == "undone"
        assert world.effects == set()


def test_a_failure_before_the_point_leaves_nothing_and_tells_its_own_error() -> None:
    plan, world, record = plan_of(3, 1), World(fails_at=NAMES[2]), Record()
    with pytest.raises(TidegateError, match="the step failed"):
        executor.run(plan, world, record)
    assert world.effects == set()
    assert record.state == "undone"


def test_every_undo_is_tried_although_one_fails() -> None:
    plan, world, record = plan_of(3, 1), World(fails_at=NAMES[2], fails_undo=NAMES[1]), Record()
    with pytest.raises(executor.UndoFailedError, match="the undo failed"):
        executor.run(plan, world, record)
    assert world.effects == {NAMES[1]}
    assert record.state == "undoing"
    world.fails_undo = ""
    assert executor.resume(plan, world, record, reason="again") is False
    assert world.effects == set()


def test_a_failure_after_the_point_is_tried_again_and_never_undone() -> None:
    plan, world, record = plan_of(2, 2), World(fails_at=NAMES[3]), Record()
    executor.run(plan, world, record)
    assert record.state == "finished"
    assert world.effects == set(NAMES[:5])


def test_an_unseen_point_is_neither_undone_nor_finished() -> None:
    plan, world, record = plan_of(2, 1), World(fails_at=NAMES[2], blind=True), Record()
    with pytest.raises(OutcomeUnknownError):
        executor.run(plan, world, record)
    assert world.effects == set(NAMES[:2])
    assert record.state == "running"
    world.blind = False
    assert executor.resume(plan, world, record, reason="it can be seen") is False
    assert world.effects == set()


def test_the_point_is_performed_once_when_all_goes_well() -> None:
    plan, world, record = plan_of(1, 1), World(), Record()
    executor.run(plan, world, record)
    assert [name for name, _ in record.events] == NAMES[:3]


def test_a_plan_prints_its_steps_in_order() -> None:
    assert list(plan_of(1, 1).lines()) == ["do 0", "point", "after 0"]


@pytest.mark.parametrize(
    ("what", "lacking"), [*(("do", n) for n in range(4)), ("undo", 0), ("undo", 1)]
)
def test_a_table_that_lacks_a_step_or_an_undo_is_refused_when_it_is_built(
    what: str, lacking: int
) -> None:
    plan = plan_of(2, 1)
    do = {step.name: lambda: None for step in plan.steps}
    undo = {step.name: lambda: None for step in plan.before()}
    assert StepTable(plan, do, undo).plan is plan
    name = plan.steps[lacking].name
    del {"do": do, "undo": undo}[what][name]
    with pytest.raises(AssertionError, match=f"no action to {what} {name}"):
        StepTable(plan, do, undo)
