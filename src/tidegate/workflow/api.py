"""The names that users of Vitess's workflow package look for, in one place.

Decides nothing: each name is defined where it belongs and only repeated here. Errors have both
their own name and the one people know (``NoStreams`` is :class:`tidegate.errors.NoStreamsError`).
The verbs are methods of :class:`tidegate.client.Client`. ``docs/reference/api-map.md`` lists every
exported name of that package with its place, or the reason it has none.
"""

from __future__ import annotations

from tidegate.errors import (
    InvalidWorkflowError,
    MultipleSourceKeyspacesError,
    MultipleTargetKeyspacesError,
    NoStreamsError,
    WorkflowNotFullySwitchedError,
    WorkflowPartiallySwitchedError,
)
from tidegate.workflow.logrecorder import LogRecorder
from tidegate.workflow.state import (
    FROZEN,
    RUNNING,
    AutoIncrementHandling,
    State,
    StreamType,
    StreamWorkflowSubType,
    StreamWorkflowType,
    TableCopyPhase,
    TableRemovalType,
    TrafficSwitchDirection,
    VReplicationWorkflowType,
    WorkflowType,
    compare_shards,
    reverse_workflow_name,
)
from tidegate.workflow.targets import (
    MigrationSource,
    MigrationTarget,
    StreamSource,
    TargetInfo,
    VReplicationStream,
    VReplicationStreams,
    build_targets,
    hash_streams,
    new_migration_source,
)

InvalidWorkflow = InvalidWorkflowError
MultipleSourceKeyspaces = MultipleSourceKeyspacesError
MultipleTargetKeyspaces = MultipleTargetKeyspacesError
NoStreams = NoStreamsError
WorkflowNotFullySwitched = WorkflowNotFullySwitchedError
WorkflowPartiallySwitched = WorkflowPartiallySwitchedError

__all__ = [
    "FROZEN",
    "RUNNING",
    "AutoIncrementHandling",
    "InvalidWorkflow",
    "LogRecorder",
    "MigrationSource",
    "MigrationTarget",
    "MultipleSourceKeyspaces",
    "MultipleTargetKeyspaces",
    "NoStreams",
    "State",
    "StreamSource",
    "StreamType",
    "StreamWorkflowSubType",
    "StreamWorkflowType",
    "TableCopyPhase",
    "TableRemovalType",
    "TargetInfo",
    "TrafficSwitchDirection",
    "VReplicationStream",
    "VReplicationStreams",
    "VReplicationWorkflowType",
    "WorkflowNotFullySwitched",
    "WorkflowPartiallySwitched",
    "WorkflowType",
    "build_targets",
    "compare_shards",
    "hash_streams",
    "new_migration_source",
    "reverse_workflow_name",
]
