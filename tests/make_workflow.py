"""Small workflows and topologies for pure tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidegate.topology.model import Snapshot
from tidegate.topology.records import Cell, Keyspace, Shard, Tablet, TabletType
from tidegate.topology.vschema import VSchema
from tidegate.workflow.model import Phase, StreamRef, Workflow
from tidegate.workflow.state import WorkflowType

if TYPE_CHECKING:
    from tidegate.dataplane.model import Direction

ALL = frozenset(TabletType)
UUID = "0b8f7f0e-6a3c-4c55-9a31-9d1c34a2f001"

SHARDED = VSchema.from_json(
    {
        "sharded": True,
        "vindexes": {"hash": {"type": "hash"}},
        "tables": {
            "customers": {"column_vindexes": [{"column": "id", "name": "hash"}]},
            "orders": {"column_vindexes": [{"column": "customer_id", "name": "hash"}]},
            "rates": {"type": "reference"},
        },
    }
)


def topology(
    layout: dict[str, list[str]], *, serving: set[tuple[str, str]] | None = None
) -> Snapshot:
    snapshot = Snapshot().with_cell(Cell("zone1")).with_cell(Cell("zone2"))
    for keyspace, shards in layout.items():
        snapshot = snapshot.with_keyspace(Keyspace(keyspace))
        for shard in shards:
            up = serving is None or (keyspace, shard) in serving
            snapshot = snapshot.with_shard(Shard(keyspace, shard, serving=up))
            alias = f"zone1-{100 + len(snapshot.tablets)}"
            conninfo = f"host=127.0.0.1 dbname={keyspace}_{shard}"
            snapshot = snapshot.with_tablet(Tablet(alias, keyspace, shard, ALL, conninfo))
    return snapshot


def workflow(**changes: Any) -> Workflow:
    given: dict[str, Any] = {
        "uuid": UUID,
        "name": "move",
        "type": WorkflowType.MOVE_TABLES,
        "source_keyspace": "commerce",
        "target_keyspace": "shop",
        "source_shards": ("0",),
        "target_shards": ("0",),
        "tables": ("customers", "orders"),
        "phase": Phase.ACTIVE,
    }
    return Workflow(**{**given, **changes})


def split(source: tuple[str, ...], target: tuple[str, ...], **changes: Any) -> Workflow:
    return workflow(
        name="split",
        type=WorkflowType.RESHARD,
        source_keyspace="commerce",
        target_keyspace="commerce",
        source_shards=source,
        target_shards=target,
        **changes,
    )


def streams(direction: Direction, *pairs: tuple[str, str]) -> tuple[StreamRef, ...]:
    return tuple(StreamRef(direction, s, t, n) for n, (s, t) in enumerate(pairs, start=1))
