"""Rows that wait to be read again: left out of a moment, and compared at a later one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from fix_copy import fill
from tidegate import steps
from tidegate.dataplane.model import TableRule
from tidegate.workflow.vdiff import consistency, run
from tidegate.workflow.vdiff.model import VDiffOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from fix_copy import World
    from fix_vdiff import Comparison

pytestmark = pytest.mark.servers

UNKNOWN = "FFFFFFFF/FFFFFFFF"
ITEMS = "CREATE TABLE items (id bigint, part text, note text, PRIMARY KEY (part, id))"
ROWS = (
    "SELECT g, chr((97 + g %% 3)::int) || E'{\"', md5(g::text) FROM generate_series(1, 6000) AS g"
).replace("%%", "%")


@dataclass
class Waiting:
    """Rows that a target lacks because its stream is to read them again from the source."""

    comparison: Comparison
    monkeypatch: pytest.MonkeyPatch
    kept: dict[int, str] = field(default_factory=dict)
    moments: int = 0
    at_moment: dict[int, Callable[[], None]] = field(default_factory=dict)
    said: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        real = steps.reached

        def reached(step: str) -> None:
            real(step)
            if step == run.MOMENT:
                self.moments += 1
                self.said.append(self.comparison.service.show(self.comparison.spans)["WaitsFor"])
                # a moment shows what was done after the one before it
                for act in [self.at_moment.pop(self.moments, None)]:
                    if act is not None:
                        act()

        self.monkeypatch.setattr(steps, "reached", reached)

    @property
    def _world(self) -> World:
        return self.comparison.world

    def take(self, *ids: int) -> None:
        """Delete rows at the targets, and note their keys."""
        spec = self.comparison.spans[0]
        for number in ids:
            for target, at in zip(spec.targets, self._world.targets, strict=True):
                rows = self._world.rows(
                    at, f"DELETE FROM items WHERE id = {number} RETURNING items::text, part, id"
                )
                for text, part, key in rows:
                    self.kept[number] = text
                    with at.admin() as session:
                        session.execute(
                            "INSERT INTO _tidegate.refetch VALUES (%s, 'items', %s)",
                            [target.stream_id, [part, str(key)]],
                        )
                        session.execute(
                            "UPDATE _tidegate.stream SET h_lsn = %s WHERE id = %s",
                            [UNKNOWN, target.stream_id],
                        )

    def give_back(self, number: int, change: str = "") -> None:
        """The row has been read again; perhaps not as it is at the source."""
        for at in self._world.targets:
            gone = self._world.rows(
                at, f"DELETE FROM _tidegate.refetch WHERE key[2] = '{number}' RETURNING 1"
            )
            if gone and change != "lost":
                with at.admin() as session:
                    session.execute("SET search_path = public")
                    session.execute("INSERT INTO items SELECT (%s::items).*", [self.kept[number]])
                    if change:
                        session.execute(
                            "UPDATE items SET note = %s WHERE id = %s", [change, number]
                        )
            self._world.run(
                at,
                "UPDATE _tidegate.stream s SET h_lsn = '0/1' WHERE NOT EXISTS"
                " (SELECT FROM _tidegate.refetch r WHERE r.stream_id = s.id)",
            )


@pytest.fixture(params=[("-",), ("-80", "80-")], ids=["whole", "split"])
def waiting(
    request: pytest.FixtureRequest,
    make_world: Callable[..., World],
    compared: Callable[..., Comparison],
    monkeypatch: pytest.MonkeyPatch,
) -> Waiting:
    ranges = request.param
    world = make_world(targets=len(ranges))
    world.everywhere(ITEMS)
    fill(world.source, "items", ROWS)
    rule = TableRule("items", ("id",), "hash", {}) if len(ranges) > 1 else TableRule("items")
    spec = world.spec([rule], ranges=ranges)
    world.copy(spec)
    return Waiting(compared(world, [spec]), monkeypatch)


def counts(report: dict[str, Any]) -> tuple[int, int, int, int]:
    found = report["TableSummary"]["items"]
    names = ("MatchingRows", "MismatchedRows", "ExtraRowsSource", "ExtraRowsTarget")
    return tuple(found[name] for name in names)


@pytest.mark.parametrize("slice_bytes", [1 << 30, 1 << 16])
def test_each_row_is_compared_once_and_what_is_wrong_with_it_is_found(
    waiting: Waiting, slice_bytes: int
) -> None:
    """Situation 39: some rows come back right, some wrong, one not at all."""
    waiting.take(5, 6, 3000, 3001, 5999)

    def return_all() -> None:
        waiting.give_back(5)
        waiting.give_back(6)
        waiting.give_back(3000, "wrong")
        waiting.give_back(3001, "lost")
        waiting.give_back(5999)

    waiting.at_moment[1] = return_all
    report = waiting.comparison.run(slice_bytes=slice_bytes)
    assert report["State"] == "completed", report["Errors"]
    assert counts(report) == (5998, 1, 1, 0)
    samples = [found for found in report["Reports"]["items"].values() if found["MismatchedRows"]]
    assert samples[0]["MismatchedRowsSample"][0]["Target"]["note"] == "wrong"
    assert waiting.moments == 2
    assert waiting.said[0] == {}
    assert "that their streams read again from the source" in str(waiting.said[1])
    assert report["WaitsFor"] == {}
    assert all("LeftForLater" not in found for found in report["Reports"]["items"].values())
    assert waiting.comparison.streams_run()


def test_a_row_that_waits_again_is_left_again(waiting: Waiting) -> None:
    """Situation 39: moments go on until each row has been seen at one, and each is counted once."""
    waiting.take(5, 6, 7)

    def second() -> None:
        waiting.give_back(6)
        waiting.take(8)  # compared already: it is not looked at again

    waiting.at_moment = {
        1: lambda: waiting.give_back(5),
        2: second,
        3: lambda: waiting.give_back(7, "wrong"),
    }
    report = waiting.comparison.run()
    assert report["State"] == "completed", report["Errors"]
    assert counts(report) == (5999, 1, 0, 0)
    assert waiting.moments == 4


def test_a_row_that_never_comes_ends_the_vdiff_with_its_reason(waiting: Waiting) -> None:
    """Situation 39: waiting is bounded, and nothing is taken for equal that was not compared."""
    waiting.take(5)
    report = waiting.comparison.run(wait_s=1.0, auto_retry=False)
    assert report["State"] == "error"
    assert "could compare nothing for 1 s" in str(report["Errors"])
    assert report["RowsCompared"] == 5999
    waiting.give_back(5, "wrong")
    spans, service = waiting.comparison.spans, waiting.comparison.service
    service.resume(spans, report["UUID"])
    resumed = service.wait(spans, report["UUID"], 60)
    assert resumed["State"] == "completed", resumed["Errors"]
    assert counts(resumed) == (5999, 1, 0, 0)


def test_a_row_at_the_target_that_should_not_be_there_is_found_beside_those_left_out(
    waiting: Waiting,
) -> None:
    """Situation 39: only the keys that wait are left out."""
    waiting.take(5, 6)
    world = waiting.comparison.world
    world.run(world.targets[0], "INSERT INTO items VALUES (70000, 'a', 'extra')")
    waiting.at_moment[1] = lambda: (waiting.give_back(5), waiting.give_back(6))[0]  # type: ignore[func-returns-value]
    report = waiting.comparison.run()
    assert counts(report) == (6000, 0, 0, 1)


def test_a_stream_that_has_not_passed_the_h_of_its_copy_is_no_basis(waiting: Waiting) -> None:
    """Situation 39: before H any row may be newer than the position, and no moment is taken."""
    world = waiting.comparison.world
    for at in world.targets:
        world.run(at, "UPDATE _tidegate.stream SET h_lsn = 'FFFFFFFF/0'")
    report = waiting.comparison.run(wait_s=0.5, auto_retry=False)
    assert report["State"] == "error"
    assert "had not reached H" in str(report["Errors"])
    assert waiting.moments == 0


def test_a_hold_that_ran_out_makes_no_moment(
    waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Situation 39: without the hold a row could have been read again behind the position."""
    opened = consistency._open_targets

    def late(moment: Any, held: Any) -> None:
        for part in held:
            part.control.execute(
                "UPDATE _tidegate.stream SET hold_until = clock_timestamp() - interval '1 s'"
            )
        opened(moment, held)

    monkeypatch.setattr(consistency, "_open_targets", late)
    report = waiting.comparison.run(wait_s=0.5, auto_retry=False)
    assert report["State"] == "error"
    assert "not held long enough" in str(report["Errors"])


def test_options_that_limit_a_vdiff_leave_nothing_behind(waiting: Waiting) -> None:
    """Situation 39: with a limit only keys of the first slice are left for later."""
    waiting.take(3, 5998)
    waiting.at_moment[1] = lambda: waiting.give_back(3)
    name = waiting.comparison.service.create(waiting.comparison.spans, VDiffOptions(limit=2000))
    report = waiting.comparison.service.wait(waiting.comparison.spans, name, 60)
    assert report["State"] == "completed", (report["Errors"], report["WaitsFor"])
    assert report["HasMismatch"] is False
