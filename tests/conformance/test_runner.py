"""The runner itself: nothing it does not understand may pass."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from conformance import case_files
from conformance.case_files import Case
from conformance.test_cases import run

if TYPE_CHECKING:
    from pathlib import Path

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
