"""A plan as a value: named steps in order, and what is left to do or to undo after an interruption.

Decides order, what a dry run prints, and which steps an interrupted operation still needs. It must
not touch the world: the executor performs the steps, the actions of each operation know how.

The rule (invariant 5): nothing before the point of no return is irreversible, nothing after it is
conditional. So a plan that was interrupted needs only one observation of the world, whether its
point has been reached. If not, every undoable step is undone in reverse order, done or not; if so,
the point and every step after it is done again. That is why each action must be idempotent and each
undo must tolerate that there is nothing to undo, and why no list of finished steps has to be
trusted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


class Zone(StrEnum):
    """Where a step stands relative to the plan's point of no return."""

    BEFORE = "before"
    POINT = "point"
    AFTER = "after"


@dataclass(frozen=True)
class PlanStep:
    """One step.

    Attributes:
        name: a declared durable step (:mod:`tidegate.steps`); also the name of its action.
        lines: what a dry run prints for it; complete, sorted by whoever wrote them.
        zone: before, at or after the point of no return.
        undoable: it has an undo. Only steps before the point may have one.
        undo_first: its undo does not wait for the undo of later steps (the application is fenced).
        in_pause: writers wait while it runs: nothing is written to the cluster database for it,
            its record follows when the pause is over.
    """

    name: str
    lines: tuple[str, ...] = ()
    zone: Zone = Zone.BEFORE
    undoable: bool = False
    undo_first: bool = False
    in_pause: bool = False

    def __post_init__(self) -> None:
        assert not (self.undoable and self.zone is not Zone.BEFORE), self.name


@dataclass(frozen=True)
class Plan:
    """The steps of one operation."""

    title: str
    steps: tuple[PlanStep, ...]

    def __post_init__(self) -> None:
        order = [Zone.BEFORE, Zone.POINT, Zone.AFTER]
        ranks = [order.index(step.zone) for step in self.steps]
        assert ranks == sorted(ranks), f"{self.title}: zones out of order"
        assert ranks.count(1) <= 1, f"{self.title}: more than one point of no return"
        names = [step.name for step in self.steps]
        assert len(set(names)) == len(names), f"{self.title}: a step twice"

    def to_undo(self) -> tuple[PlanStep, ...]:
        """What takes the plan back, in order, when its point has not been reached."""
        undoable = [step for step in reversed(self.steps) if step.undoable]
        return tuple(sorted(undoable, key=lambda step: not step.undo_first))

    @property
    def point(self) -> PlanStep | None:
        """The point of no return; a plan without one cannot be undone from its first step on."""
        return next((step for step in self.steps if step.zone is Zone.POINT), None)

    def before(self) -> tuple[PlanStep, ...]:
        """The steps that can still be taken back."""
        return tuple(step for step in self.steps if step.zone is Zone.BEFORE)

    def after(self) -> tuple[PlanStep, ...]:
        """The steps behind the point."""
        return tuple(step for step in self.steps if step.zone is Zone.AFTER)

    def lines(self) -> Iterator[str]:
        """What a dry run prints."""
        for step in self.steps:
            yield from step.lines


@dataclass(frozen=True, slots=True)
class StepTable:
    """What the steps of a plan do, and what undoes them, by their names.

    One that lacks a step, or the undo of an undoable one, is refused when it is built: an undo that
    is missing must not be found out while a failed operation is rolled back.
    """

    plan: Plan
    do: Mapping[str, Callable[[], None]]
    undo: Mapping[str, Callable[[], None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lacking = [f"do {step.name}" for step in self.plan.steps if step.name not in self.do]
        undoable = [step.name for step in self.plan.to_undo()]
        lacking += [f"undo {name}" for name in undoable if name not in self.undo]
        assert not lacking, f"{self.plan.title}: no action to {', '.join(lacking)}"
