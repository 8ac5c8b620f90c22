"""Which captures an owner counts on."""

from __future__ import annotations

import pytest

from tidegate.scheduling.captures import Captures, CaptureState
from tidegate.scheduling.messages import Header, Report
from tidegate.scheduling.model import CaptureInfo, Liveness, Span, SpanStatus, TableState

RUNNING = SpanStatus(Span("t"), TableState.REPLICATING)


def report(sender: str, number: int, *, epoch: str = "e", **more: object) -> Report:
    return Report(sender, "o", Header(1, 0, epoch), number, **more)  # type: ignore[arg-type]


def alive(*names: str) -> dict[str, CaptureInfo]:
    return {name: CaptureInfo(name) for name in names}


def test_one_silent_capture_does_not_make_the_others_unready() -> None:
    """Scheduling 7: readiness is of each capture."""
    captures = Captures("o")
    captures.update(alive("a", "b"))
    assert captures.heard(report("a", 1))
    captures.update(alive("a", "b"))
    assert captures.ready() == ["a"]
    assert not captures.is_initialized


def test_a_restart_under_the_same_name_is_another_capture() -> None:
    """Scheduling 9: identity is the name and the epoch of a life."""
    captures = Captures("o")
    captures.update({"a": CaptureInfo("a", "first")})
    captures.heard(report("a", 1, epoch="first", statuses=(RUNNING,)))
    captures.update({"a": CaptureInfo("a", "first")})
    changes = captures.update({"a": CaptureInfo("a", "second")})
    assert (changes.joined, list(changes.removed)) == (("a",), ["a"])
    assert list(changes.removed["a"]) == [Span("t")]
    assert not captures.heard(report("a", 2, epoch="first", statuses=(RUNNING,)))
    assert captures.known["a"].state is CaptureState.UNINITIALIZED


def test_a_report_of_another_life_changes_nothing() -> None:
    """Hazard H7."""
    captures = Captures("o")
    captures.update(alive("a"))
    assert captures.heard(report("a", 1))
    assert not captures.heard(report("a", 2, epoch="other", liveness=Liveness.STOPPING))
    assert captures.ready() == ["a"]


@pytest.mark.parametrize("number", [1, 2])
def test_a_late_or_doubled_report_is_known_by_its_number(number: int) -> None:
    """Scheduling 2: never by its content."""
    captures = Captures("o")
    captures.update(alive("a"))
    captures.heard(report("a", 2, statuses=(RUNNING,)))
    assert not captures.heard(report("a", number))
    assert list(captures.known["a"].statuses) == [Span("t")]


def test_a_delta_before_the_first_full_report_is_not_taken() -> None:
    captures = Captures("o")
    captures.update(alive("a"))
    assert not captures.heard(report("a", 1, is_full=False))
    assert captures.heard(report("a", 2, statuses=(RUNNING,)))
    assert captures.heard(report("a", 3, is_full=False))
    assert list(captures.known["a"].statuses) == [Span("t")]


def test_only_captures_that_an_owner_finds_may_run_what_it_does_not_know() -> None:
    captures = Captures("o")
    captures.update(alive("a", "b"))
    captures.heard(report("a", 1))
    captures.update(alive("a", "b", "c"))
    assert captures.may_hold_unknown == ["b"]


def test_silence_is_counted_in_ticks() -> None:
    captures = Captures("o")
    captures.update(alive("a", "b"))
    for number in range(1, 5):
        captures.tick()
        captures.heard(report("a", number))
    assert captures.silent(3) == ["b"]
    assert captures.silent(4) == []
