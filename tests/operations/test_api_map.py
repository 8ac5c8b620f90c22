"""The map of names of the automation package is complete and can be imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from api_map_pages import IN_NOTES, NOTHING, resolve, rows_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "api-map-operations.md"

#: Every name that the documentation of the Go package exports; methods with their type.
EXPORTED = [
    "AddMissingTaskID",
    "AddTask",
    "CreateLoggerEventToBufferFunction",
    "ExecuteVtctl",
    "ExecuteVtworker",
    "MarkTaskFailed",
    "MarkTaskSucceeded",
    "NewTask",
    "NewTaskContainer",
    "NewTaskContainerWithSingleTask",
    "ClusterOperationInstance",
    "NewClusterOperationInstance",
    "ClusterOperationInstance.Clone",
    "ClusterOperationInstance.InsertTaskContainers",
    "CopySchemaShardTask",
    "CopySchemaShardTask.OptionalParameters",
    "CopySchemaShardTask.RequiredParameters",
    "CopySchemaShardTask.Run",
    "HorizontalReshardingTask",
    "HorizontalReshardingTask.OptionalParameters",
    "HorizontalReshardingTask.RequiredParameters",
    "HorizontalReshardingTask.Run",
    "IDGenerator",
    "IDGenerator.GetNextID",
    "Scheduler",
    "Scheduler.Checkpoint",
    "Scheduler.EnqueueClusterOperation",
    "Scheduler.GetClusterOperationDetails",
    "Scheduler.Run",
    "Scheduler.ShutdownAndWait",
    "SplitCloneTask",
    "SplitCloneTask.OptionalParameters",
    "SplitCloneTask.RequiredParameters",
    "SplitCloneTask.Run",
    "SplitDiffTask",
    "SplitDiffTask.OptionalParameters",
    "SplitDiffTask.RequiredParameters",
    "SplitDiffTask.Run",
    "Task",
    "Task.Run",
    "Task.RequiredParameters",
    "Task.OptionalParameters",
    "WaitForFilteredReplicationTask",
    "WaitForFilteredReplicationTask.OptionalParameters",
    "WaitForFilteredReplicationTask.RequiredParameters",
    "WaitForFilteredReplicationTask.Run",
]


ROWS = rows_of(PAGE)


def test_every_exported_name_has_its_row() -> None:
    assert [go for go, _, _ in ROWS] == EXPORTED


@pytest.mark.parametrize(
    ("go", "python"), [(go, python) for go, python, _ in ROWS if python != NOTHING]
)
def test_every_python_name_can_be_imported(go: str, python: str) -> None:
    assert resolve(python) is not None, go


@pytest.mark.parametrize(
    "python", sorted({name for _, _, note in ROWS for name in IN_NOTES.findall(note)})
)
def test_every_python_name_in_a_note_can_be_imported(python: str) -> None:
    assert resolve(python) is not None


def test_a_name_without_a_place_says_why() -> None:
    for go, python, note in ROWS:
        if python == NOTHING:
            assert note.startswith("only serves Go"), go
