"""The map of names of the scheduler package is complete and can be imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from api_map_pages import IN_NOTES, resolve, rows_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "api-map-scheduling.md"

#: Every name that the documentation of the Go package exports; methods with their type.
EXPORTED = [
    "CheckpointCannotProceed",
    "Agent",
    "Agent.Tick",
    "Agent.Close",
    "InfoProvider",
    "InfoProvider.IsInitialized",
    "InfoProvider.GetTaskStatuses",
    "Query",
    "Scheduler",
    "Scheduler.Tick",
    "Scheduler.MoveTable",
    "Scheduler.Rebalance",
    "Scheduler.DrainCapture",
    "Scheduler.Close",
    "TableExecutor",
    "TableExecutor.AddTableSpan",
    "TableExecutor.IsAddTableSpanFinished",
    "TableExecutor.RemoveTableSpan",
    "TableExecutor.IsRemoveTableSpanFinished",
    "TableExecutor.GetTableSpanStatus",
]

ROWS = rows_of(PAGE)


def test_every_exported_name_has_its_row() -> None:
    assert [go for go, _, _ in ROWS] == EXPORTED


@pytest.mark.parametrize(("go", "python"), [(go, python) for go, python, _ in ROWS])
def test_every_python_name_can_be_imported(go: str, python: str) -> None:
    assert resolve(python) is not None, go


@pytest.mark.parametrize(
    "python", sorted({name for _, _, note in ROWS for name in IN_NOTES.findall(note)})
)
def test_every_python_name_in_a_note_can_be_imported(python: str) -> None:
    assert resolve(python) is not None
