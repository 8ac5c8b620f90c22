"""The runner itself: nothing it does not understand may pass."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from conformance import case_files, scenarios
from conformance.case_files import Case
from conformance.test_cases import SYSTEMS, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conformance.scenarios import Scenario

GOOD = {"in": {"type": "INT64", "text": "1"}, "out": {"kind": "keyspace_id", "hex": "00"}}


@pytest.mark.parametrize(
    ("area", "section", "row"),
    [
        ("no such area", "map", GOOD),
        ("null", "no such section", GOOD),
        ("null", "map", {**GOOD, "no_such_check": True}),
        ("null", "map", {**GOOD, "in": {"type": "NO_SUCH_TYPE", "text": "1"}}),
        ("null", "map", {**GOOD, "out": {"kind": "no such kind"}}),
        ("null", "properties", {"no_such_property": True}),
        ("null", "map", {**GOOD, "out": {"kind": "keyspace_id", "hex": "01"}}),
        ("null", "map", {"in": GOOD["in"], "error": "no error comes"}),
    ],
)
def test_what_is_unknown_or_wrong_fails(area: str, section: str, row: dict[str, Any]) -> None:
    with pytest.raises((AssertionError, KeyError, pytest.fail.Exception)):
        run(Case("x", area, section, row, {"area": area}))


def test_a_good_row_passes() -> None:
    run(Case("x", "null", "map", GOOD, {"area": "null"}))


def test_other_folders_are_read_flat_or_deep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    for path in (tmp_path / "a.json", tmp_path / "deep" / "b.json"):
        path.write_text(json.dumps({"area": "null", "map": [GOOD]}))
    (tmp_path / "c.json").write_text("[]")
    monkeypatch.setenv("TIDEGATE_CASES", str(tmp_path))
    assert [case.id for case in case_files.cases()] == [
        "a-map-0",
        "c-without-area",
        "deep/b-map-0",
    ]


def test_a_folder_without_cases_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEGATE_CASES", str(tmp_path))
    with pytest.raises(AssertionError, match="no case files"):
        list(case_files.cases())


STORY = {"id": "X1", "system": "a", "given": {}, "events": [], "expect": {}}


def play(
    monkeypatch: pytest.MonkeyPatch, play_it: Callable[[Scenario], None], **parts: Any
) -> None:
    monkeypatch.setitem(SYSTEMS, "a", play_it)
    run(Case("x", "a", case_files.STORY, {**STORY, **parts}, {}))


def look_at_given(case: Scenario) -> None:
    assert case.given["known"]["deep"] == 1
    case.take_all()


def test_a_story_of_a_known_system_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, look_at_given, given={"known": {"deep": 1}}, events=["e"], notes="any")


@pytest.mark.parametrize(
    "parts",
    [
        {"given": {"known": {"deep": 2}}},
        {"given": {"known": {"deep": 1, "other": 1}}},
        {"given": {"known": {"deep": 1}, "other": 1}},
        {"given": {"known": {"deep": 1}}, "expect": {"never": "looked at"}},
        {"given": {"known": {"deep": 1}}, "events": [{"nobody": "reads this"}]},
        {"given": {"known": {"deep": 1}}, "surprise": 1},
    ],
)
def test_what_nobody_looks_at_in_a_story_fails(
    monkeypatch: pytest.MonkeyPatch, parts: dict[str, Any]
) -> None:
    with pytest.raises(AssertionError):
        play(monkeypatch, look_at_given, **parts)


def test_an_event_that_nobody_takes_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="event 0"):
        play(monkeypatch, lambda _: None, events=["nobody takes this"])


def test_stories_of_unknown_systems_and_without_one_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{**STORY, "system": "no such"}, {"id": "X2"}, 3]))
    monkeypatch.setenv("TIDEGATE_CASES", str(tmp_path))
    found = list(case_files.cases())
    assert [case.id for case in found] == ["a-X1", "a-1-without-system", "a-2-without-system"]
    for case in found:
        with pytest.raises((AssertionError, pytest.fail.Exception), match="unknown"):
            run(case)


DEVIATES = """
[[deviation]]
case = "X1"
key = "results.1"
ours = "mended"
defect = "D3"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "deviations.toml"
    path.write_text(text)
    return path


def test_a_deviation_puts_our_expectation_in_the_place_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenarios.deviations, "__defaults__", (written(tmp_path, DEVIATES),))
    found = scenarios.scenario({**STORY, "expect": {"results": ["a", "b"]}})
    assert found.expect["results"] == ["a", "mended"]
    with pytest.raises(AssertionError, match="deviates in nothing"):
        scenarios.scenario({**STORY, "expect": {"results": ["a", "mended"]}})


@pytest.mark.parametrize(
    "defect", ["", "D12", "D0", "A4.10", "A4", "foreign setting", "foreign setting: ", "a bug"]
)
def test_a_deviation_without_a_number_fails(tmp_path: Path, defect: str) -> None:
    path = written(tmp_path, DEVIATES.replace("D3", defect))
    with pytest.raises(AssertionError, match="no defect"):
        scenarios.deviations(path)


@pytest.mark.parametrize("key", ["results.2", "no such", "results.x"])
def test_a_deviation_that_no_case_uses_is_found(tmp_path: Path, key: str) -> None:
    entries = scenarios.deviations(written(tmp_path, DEVIATES.replace("results.1", key)))
    case = {**STORY, "expect": {"results": ["a", "b"]}}
    assert scenarios.unused(entries, [case]) == [f"X1 {key}"]
    assert scenarios.unused(entries, []) == [f"X1 {key}"]


def test_every_deviation_is_founded_and_one_of_ours_is_used() -> None:
    entries = scenarios.deviations()
    if case_files.folder() == case_files.HERE:
        stories = [case.row for case in case_files.cases() if case.section == case_files.STORY]
        assert not scenarios.unused(entries, stories)
