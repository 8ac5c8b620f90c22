"""The tables that the decisions' modules show are what their functions do, in every case."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from bootstrap.make_upgrade import NOW, row, step
from tidegate.bootstrap import planning, stepping
from tidegate.bootstrap.model import Member, Step, StepState, UpgradeState, Version, VersionRow
from tidegate.bootstrap.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

READY = UpgradeState.READY


def table_of(module: ModuleType) -> list[tuple[list[str], str]]:
    """Conditions and outcome of each row; a cell's conditions are separated by commas."""
    lines = [line for line in (module.__doc__ or "").splitlines() if line.startswith("|")]
    found = []
    for line in lines[2:]:
        *cells, outcome = (cell.strip() for cell in line.strip("|").split("|"))
        found.append(([part for cell in cells for part in cell.split(", ")], outcome))
    return found


def only[Case](
    module: ModuleType, words: dict[str, Callable[[Case], bool]], case: Case
) -> tuple[int, str]:
    """Place and outcome of the one row that holds."""
    holding = [
        (place, outcome)
        for place, (conditions, outcome) in enumerate(table_of(module))
        if all(words[condition](case) for condition in conditions)
    ]
    assert len(holding) == 1, (case, holding)
    return holding[0]


@dataclass(frozen=True)
class Start:
    """A program that starts."""

    latest: VersionRow | None
    mine: Version
    recorded: bool
    old_lives: bool
    supersede: bool

    def compared(self) -> int:
        theirs = self.latest.identity if self.latest is not None else self.mine.identity
        return (self.mine.identity > theirs) - (self.mine.identity < theirs)

    def has(self, *, state: bool, finalised: bool | None = None) -> bool:
        if self.latest is None or (self.latest.state is READY) != state:
            return False
        return finalised is None or self.latest.is_finalised == finalised

    def version(self) -> int:
        assert self.latest is not None
        theirs, mine = self.latest.identity[0], self.mine.number
        return (mine > theirs) - (mine < theirs)


STARTS: dict[str, Callable[[Start], bool]] = {
    "none": lambda c: c.latest is None,
    "any": lambda _: True,
    "not ready": lambda c: c.has(state=False),
    "ready": lambda c: c.has(state=True),
    "finalised": lambda c: c.has(state=True, finalised=True),
    "not finalised": lambda c: c.has(state=True, finalised=False),
    "older members live": lambda c: c.old_lives,
    "finalised or without older members": lambda c: (
        c.has(state=True, finalised=True) or not c.old_lives
    ),
    "the same version and offset": lambda c: c.compared() == 0,
    "newer": lambda c: c.compared() > 0,
    "older": lambda c: c.compared() < 0,
    "told to supersede": lambda c: c.supersede,
    "not told to supersede": lambda c: not c.supersede,
    "of an older version": lambda c: c.version() < 0,
    "of the same version": lambda c: c.version() == 0,
    "not newer": lambda c: c.compared() <= 0,
    "recorded before": lambda c: c.recorded,
    "not recorded before": lambda c: not c.recorded,
}

DECIDED = {
    "found": planning.Found,
    "join": planning.Nothing,
    "supersede": planning.Supersede,
    "refuse": planning.Refuse,
    "nothing": planning.Nothing,
    "plan": planning.Plan,
}


def starts() -> Iterator[Start]:
    flags = (False, True)
    latest: list[VersionRow | None] = [None]
    for state, finalised in itertools.product((UpgradeState.CREATED, READY), flags):
        latest.append(row("2.0.0", 3, state, finalised=finalised))
    mine = [Version(v, "1.0.0", offset=o) for v in ("1.9.0", "2.0.0", "2.1.0") for o in (2, 3, 4)]
    for each in itertools.product(latest, mine, flags, flags, flags):
        yield Start(*each)


def test_a_program_that_starts_decides_as_the_table_says() -> None:
    met = set()
    for case in starts():
        place, outcome = only(planning, STARTS, case)
        met.add(place)
        found = planning.decide(
            case.latest,
            case.mine,
            [case.mine.identity] if case.recorded else [],
            members=[Member("n1", "1.0.0")] if case.old_lives else [],
            supersede=case.supersede,
        )
        assert isinstance(found, DECIDED[outcome.split(" ")[0].rstrip(":;,")]), (case, found)
        if isinstance(found, planning.Plan):
            assert case.latest is not None
            assert found.finalises != case.latest.is_finalised
    assert met == set(range(len(table_of(planning))))


@dataclass(frozen=True)
class Pass:
    """A pass over an upgrade's steps, of which ``first`` is the first that is not ready."""

    upgrade: VersionRow
    first: Step | None
    settled: bool

    def is_at(self, state: StepState) -> bool:
        return self.first is not None and self.first.state is state

    def is_empty(self) -> bool:
        assert self.first is not None
        return not (self.first.leg.needs_cluster or self.first.leg.needs_tenant)

    def is_to_wait(self) -> bool:
        assert self.first is not None
        later = self.first.next_at is None or self.first.next_at > NOW
        return self.first.attempts > 0 and later


PASSES: dict[str, Callable[[Pass], bool]] = {
    "any": lambda _: True,
    "ready": lambda c: c.upgrade.state is READY,
    "not ready": lambda c: c.upgrade.state is not READY,
    "there is none": lambda c: c.first is None,
    "created": lambda c: c.is_at(StepState.CREATED),
    "needs nothing": lambda c: c.is_empty(),
    "needs something": lambda c: not c.is_empty(),
    "is to wait after a failure": lambda c: c.is_to_wait(),
    "may run": lambda c: not c.is_to_wait(),
    "its tenants run": lambda c: c.is_at(StepState.UPGRADING_TENANTS),
    "some are not settled": lambda c: not c.settled,
    "all are settled": lambda c: c.settled,
}

DONE = {
    "nothing is left": stepping.Completed,
    "the upgrade is ready": stepping.MarkUpgradeReady,
    "mark it ready": stepping.MarkReady,
    "wait until": stepping.Wait,
    "prepare": stepping.RunCluster,
    "wait": stepping.Wait,
    "sweep": stepping.Sweep,
}


def passes() -> Iterator[Pass]:
    flags = (False, True)
    firsts: list[Step | None] = [None]
    for state, cluster, tenant in itertools.product(
        (StepState.CREATED, StepState.UPGRADING_TENANTS), flags, flags
    ):
        made = step("1.0.0", "2.0.0", state, 1, cluster=cluster, tenant=tenant)
        firsts.append(made)
        times = (None, NOW - timedelta(seconds=1), NOW + timedelta(seconds=1))
        firsts += [replace(made, attempts=1, next_at=at) for at in times]
    upgrades = [row("3.0.0", state=state) for state in (UpgradeState.CREATED, READY)]
    for each in itertools.product(upgrades, firsts, flags):
        yield Pass(*each)


def at(progress: Progress, _step: Step) -> Progress:
    return progress


def test_a_pass_over_an_upgrade_does_what_the_table_says() -> None:
    met = set()
    before = step("0.9.0", "1.0.0", StepState.READY)
    after = step("2.0.0", "3.0.0", ordinal=2)
    for case in passes():
        place, outcome = only(stepping, PASSES, case)
        met.add(place)
        for rest in ([], [after]) if case.first is not None else ([],):
            steps = [before, *([] if case.first is None else [case.first]), *rest]
            counted = Progress(done=1, pending=0 if case.settled else 1)
            found = stepping.next_action(case.upgrade, steps, partial(at, counted), NOW)
            expected = next(done for words, done in DONE.items() if outcome.startswith(words))
            assert isinstance(found, expected), (case, found)
            if isinstance(found, stepping.RunCluster):
                assert found.is_final == (not rest)
            if not isinstance(found, stepping.Completed | stepping.MarkUpgradeReady):
                assert found.step is case.first
    assert met == set(range(len(table_of(stepping))))
