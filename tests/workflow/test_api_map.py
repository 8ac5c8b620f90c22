"""The map of names is complete, and every Python name in it can be imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from api_map_pages import IN_NOTES, NOTHING, resolve, rows_of
from tidegate import errors
from tidegate.workflow import api

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "api-map.md"

#: Every name that the documentation of the Go package exports; fields and methods with their type.
EXPORTED = [
    "VReplicationWorkflowType",
    "MoveTablesWorkflow",
    "ReshardWorkflow",
    "MigrateWorkflow",
    "StreamType",
    "StreamTypeUnknown",
    "StreamTypeSharded",
    "StreamTypeReference",
    "Frozen",
    "Running",
    "TrafficSwitchDirection",
    "DirectionForward",
    "DirectionBackward",
    "TableRemovalType",
    "TableRemovalType.String",
    "DropTable",
    "RenameTable",
    "ErrInvalidWorkflow",
    "ErrMultipleSourceKeyspaces",
    "ErrMultipleTargetKeyspaces",
    "ErrWorkflowNotFullySwitched",
    "ErrWorkflowPartiallySwitched",
    "ErrNoStreams",
    "CompareShards",
    "HashStreams",
    "ReverseWorkflowName",
    "Materialize",
    "StreamMigratorFinalize",
    "ITrafficSwitcher",
    "ITrafficSwitcher.TopoServer",
    "ITrafficSwitcher.TabletManagerClient",
    "ITrafficSwitcher.Logger",
    "ITrafficSwitcher.VReplicationExec",
    "ITrafficSwitcher.ExternalTopo",
    "ITrafficSwitcher.MigrationType",
    "ITrafficSwitcher.ReverseWorkflowName",
    "ITrafficSwitcher.SourceKeyspaceName",
    "ITrafficSwitcher.SourceKeyspaceSchema",
    "ITrafficSwitcher.Sources",
    "ITrafficSwitcher.Tables",
    "ITrafficSwitcher.TargetKeyspaceName",
    "ITrafficSwitcher.Targets",
    "ITrafficSwitcher.WorkflowName",
    "ITrafficSwitcher.SourceTimeZone",
    "ITrafficSwitcher.ForAllSources",
    "ITrafficSwitcher.ForAllTargets",
    "ITrafficSwitcher.ForAllUIDs",
    "ITrafficSwitcher.SourceShards",
    "ITrafficSwitcher.TargetShards",
    "LogRecorder",
    "NewLogRecorder",
    "LogRecorder.GetLogs",
    "LogRecorder.Log",
    "LogRecorder.LogSlice",
    "LogRecorder.Logf",
    "MigrationSource",
    "MigrationSource.Position",
    "MigrationSource.Journaled",
    "NewMigrationSource",
    "MigrationSource.GetPrimary",
    "MigrationSource.GetShard",
    "MigrationTarget",
    "MigrationTarget.Sources",
    "MigrationTarget.Position",
    "MigrationTarget.GetPrimary",
    "MigrationTarget.GetShard",
    "Server",
    "NewServer",
    "Server.CheckReshardingJournalExistsOnTablet",
    "Server.CopySchemaShard",
    "Server.DeleteShard",
    "Server.DropTargets",
    "Server.GetCellsWithShardReadsSwitched",
    "Server.GetCellsWithTableReadsSwitched",
    "Server.GetCopyProgress",
    "Server.GetWorkflow",
    "Server.GetWorkflows",
    "Server.LookupVindexCreate",
    "Server.LookupVindexExternalize",
    "Server.Materialize",
    "Server.MigrateCreate",
    "Server.MountList",
    "Server.MountRegister",
    "Server.MountShow",
    "Server.MountUnregister",
    "Server.MoveTablesComplete",
    "Server.MoveTablesCreate",
    "Server.ReshardCreate",
    "Server.VDiffCreate",
    "Server.VDiffDelete",
    "Server.VDiffResume",
    "Server.VDiffShow",
    "Server.VDiffStop",
    "Server.VReplicationExec",
    "Server.WorkflowDelete",
    "Server.WorkflowStatus",
    "Server.WorkflowSwitchTraffic",
    "Server.WorkflowUpdate",
    "State",
    "State.Workflow",
    "State.SourceKeyspace",
    "State.TargetKeyspace",
    "State.WorkflowType",
    "State.ReplicaCellsSwitched",
    "State.ReplicaCellsNotSwitched",
    "State.RdonlyCellsSwitched",
    "State.RdonlyCellsNotSwitched",
    "State.WritesSwitched",
    "State.IsPartialMigration",
    "State.ShardsAlreadySwitched",
    "State.ShardsNotYetSwitched",
    "State.String",
    "StreamMigrator",
    "BuildStreamMigrator",
    "StreamMigrator.CancelMigration",
    "StreamMigrator.MigrateStreams",
    "StreamMigrator.StopStreams",
    "StreamMigrator.Streams",
    "StreamMigrator.Templates",
    "TargetInfo",
    "TargetInfo.Targets",
    "TargetInfo.Frozen",
    "TargetInfo.OptCells",
    "TargetInfo.OptTabletTypes",
    "TargetInfo.WorkflowType",
    "TargetInfo.WorkflowSubType",
    "BuildTargets",
    "LegacyBuildTargets",
    "Type",
    "TypeMoveTables",
    "TypeReshard",
    "TypeMigrate",
    "VReplicationStream",
    "VReplicationStream.ID",
    "VReplicationStream.Workflow",
    "VReplicationStream.BinlogSource",
    "VReplicationStream.Position",
    "VReplicationStream.WorkflowType",
    "VReplicationStream.WorkflowSubType",
    "VReplicationStream.DeferSecondaryKeys",
    "VReplicationStreams",
    "VReplicationStreams.Copy",
    "VReplicationStreams.ToSlice",
    "VReplicationStreams.Values",
    "VReplicationStreams.Workflows",
]

ROWS = rows_of(PAGE)


def test_every_exported_name_has_its_row() -> None:
    assert [go for go, _, _ in ROWS] == EXPORTED
    assert len(set(EXPORTED)) == len(EXPORTED)


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
            assert note.startswith(("to come", "only serves Go", "none: ")), go


def test_errors_have_the_names_people_expect() -> None:
    assert api.NoStreams is errors.NoStreamsError
    assert api.WorkflowNotFullySwitched is errors.WorkflowNotFullySwitchedError
    assert api.WorkflowPartiallySwitched is errors.WorkflowPartiallySwitchedError
    assert issubclass(api.MultipleSourceKeyspaces, api.InvalidWorkflow)
    assert issubclass(api.MultipleTargetKeyspaces, api.InvalidWorkflow)
    assert all(hasattr(api, name) for name in api.__all__)
