"""What the API's resources are made of: the open services of one node."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tidegate.errors import FailedPreconditionError
from tidegate.topology.service import TopologyService
from tidegate.topology.store import DEFAULT_ATTEMPTS, TopologyStore
from tidegate.workflow.spans import span_spec
from tidegate.workflow.traffic import observed_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from tidegate.bootstrap.tenants.service import TenantService
    from tidegate.cluster.database import ClusterDatabase
    from tidegate.dataplane.model import Direction, SpanSpec
    from tidegate.operations.service import OperationService
    from tidegate.server.config import Settings
    from tidegate.server.feed import RouteFeed
    from tidegate.server.schema_upgrade import SchemaUpgrade
    from tidegate.server.slot_watch import SlotWatch
    from tidegate.server.supervisor import Supervisor
    from tidegate.server.tokens import Tokens
    from tidegate.topology.followers import RouterReports
    from tidegate.topology.model import Snapshot
    from tidegate.workflow.model import Workflow
    from tidegate.workflow.service import WorkflowService
    from tidegate.workflow.state import State
    from tidegate.workflow.store import WorkflowStore
    from tidegate.workflow.vdiff.service import VDiffService


class RehearsedStore(TopologyStore):
    """A topology store whose changes are checked and not made: what ``--dry-run`` works on."""

    def update(
        self,
        change: Callable[[Snapshot], Snapshot],
        *,
        attempts: int = DEFAULT_ATTEMPTS,
        guard: Callable[[Connection], None] | None = None,
    ) -> Snapshot:
        """What the real store would commit; nothing is committed."""
        assert attempts > 0
        assert guard is None, "a rehearsal holds no lease"
        return self.check(change)


@dataclass
class Services:
    """The open services of a node."""

    settings: Settings
    database: ClusterDatabase
    tokens: Tokens
    store: TopologyStore
    records: WorkflowStore
    workflows: WorkflowService
    vdiffs: VDiffService
    operations: OperationService
    tenants: TenantService
    supervisor: Supervisor
    feed: RouteFeed
    routers: RouterReports
    slots: SlotWatch
    upgrade: SchemaUpgrade
    ready: Callable[[], str | None]
    """None when the node can take work, else what is missing."""
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def refuse_in_use(self, keyspace: str, shard: str | None = None) -> None:
        """Make sure that no workflow needs a keyspace, or one of its shards.

        Raises:
            FailedPreconditionError: naming the workflows that do.
        """
        users = sorted(
            workflow.key
            for workflow in self.records.all()
            for side, shards in (
                (workflow.source_keyspace, workflow.source_shards),
                (workflow.target_keyspace, workflow.target_shards),
            )
            if side == keyspace and (shard is None or shard in shards)
        )
        if users:
            what = f"keyspace {keyspace}" if shard is None else f"shard {keyspace}/{shard}"
            named = ", ".join(dict.fromkeys(users))
            raise FailedPreconditionError(
                f"{what} is used by workflow {named}",
                next_step="complete or cancel that workflow first: tidegate workflow list",
            )

    def state(self, workflow: Workflow) -> State:
        """Where a workflow's traffic goes now."""
        return observed_state(self.store.read(), workflow)

    def spans(self, workflow: Workflow, direction: Direction) -> list[SpanSpec]:
        """The spans of one direction of a workflow, whether they run or not."""
        snapshot = self.store.read()
        sources = sorted({stream.source_shard for stream in workflow.streams_of(direction)})
        return [span_spec(snapshot, workflow, direction, shard) for shard in sources]

    def topology(self, *, dry_run: bool = False) -> TopologyService:
        """The verbs of the topology; rehearsed ones change nothing."""
        return TopologyService(
            RehearsedStore(self.database) if dry_run else self.store,
            files=self.settings.vindex_folder,
        )
