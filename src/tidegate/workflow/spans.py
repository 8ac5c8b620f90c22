"""Which streams a workflow has in each direction, what each carries, and which workers should run.

Decides from topology and records alone: pairs of shards, the rule of each table, the span of each
source shard. It must not look at a stream's state; a span is wanted when its direction is, and
whether a worker makes progress is for the supervisor to see.

* A span reads one source shard and feeds every target shard it concerns: all of them when tables
  move between keyspaces, those of intersecting key range when a keyspace is resharded.
* A table that the target spreads by a vindex carries that vindex; a table of an unsharded target
  and a reference table go whole to every target.
* A reference table is the same at all sources: each target reads it from the first source that
  feeds it, so that one row is never fed twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.dataplane.model import Direction, Home, SpanOptions, SpanSpec, TableRule, TargetSpec
from tidegate.topology.vschema import TableKind
from tidegate.workflow.model import Phase, replication_name
from tidegate.workflow.sessions import endpoint_of
from tidegate.workflow.state import WorkflowType

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tidegate.topology.model import Snapshot
    from tidegate.workflow.model import Workflow


def fed_shards(
    snapshot: Snapshot, workflow: Workflow, direction: Direction, source_shard: str
) -> tuple[str, ...]:
    """The target shards that rows of a source shard may belong to, sorted."""
    source_keyspace, target_keyspace = workflow.keyspaces(direction)
    targets = sorted(workflow.shards(direction)[1])
    if workflow.type is not WorkflowType.RESHARD:
        return tuple(targets)
    held = snapshot.shard(source_keyspace, source_shard).key_range
    return tuple(
        name for name in targets if snapshot.shard(target_keyspace, name).key_range.intersects(held)
    )


def table_rules(
    snapshot: Snapshot, workflow: Workflow, direction: Direction, source_shard: str
) -> tuple[TableRule, ...]:
    """What the span of a source shard carries, by table name."""
    vschema = snapshot.vschema(workflow.keyspaces(direction)[1])
    targets = workflow.shards(direction)[1]
    rules = []
    for table in workflow.tables:
        spec = vschema.tables.get(table)
        whole = not vschema.sharded or len(targets) == 1
        reference = spec is not None and spec.kind is TableKind.REFERENCE
        if reference or (whole and _is_reference(snapshot, workflow, direction, table)):
            fed = _fed_first(snapshot, workflow, direction, source_shard)
            if fed:
                everywhere = fed == fed_shards(snapshot, workflow, direction, source_shard)
                rules.append(TableRule(table, alone=True, targets=() if everywhere else fed))
            continue
        home = _home(snapshot, workflow, direction, table)
        if whole or spec is None or spec.primary_vindex is None:
            rules.append(TableRule(table, home=home))
        else:
            vindex = vschema.vindexes[spec.primary_vindex.name]
            params = dict(vindex.params)
            columns = spec.primary_vindex.columns
            rules.append(TableRule(table, columns, vindex.type, params, home=home))
    return tuple(rules)


def _home(snapshot: Snapshot, workflow: Workflow, direction: Direction, table: str) -> Home | None:
    """How rows of a table tell which of several source shards they are from."""
    if len(workflow.shards(direction)[0]) < 2:
        return None
    vschema = snapshot.vschema(workflow.keyspaces(direction)[0])
    spec = vschema.tables.get(table)
    if spec is None or spec.primary_vindex is None:
        return None
    vindex = vschema.vindexes[spec.primary_vindex.name]
    return Home(spec.primary_vindex.columns, vindex.type, dict(vindex.params))


def _is_reference(snapshot: Snapshot, workflow: Workflow, direction: Direction, table: str) -> bool:
    """Whether each source shard has the whole table."""
    spec = snapshot.vschema(workflow.keyspaces(direction)[0]).tables.get(table)
    return spec is not None and spec.kind is TableKind.REFERENCE


def _fed_first(
    snapshot: Snapshot, workflow: Workflow, direction: Direction, source_shard: str
) -> tuple[str, ...]:
    """The target shards whose first source this one is, sorted."""
    earlier = [s for s in sorted(workflow.shards(direction)[0]) if s < source_shard]
    taken = {t for s in earlier for t in fed_shards(snapshot, workflow, direction, s)}
    fed = fed_shards(snapshot, workflow, direction, source_shard)
    return tuple(target for target in fed if target not in taken)


def stream_pairs(
    snapshot: Snapshot, workflow: Workflow, direction: Direction
) -> tuple[tuple[str, str], ...]:
    """(source shard, target shard) of every stream of a direction, sorted."""
    return tuple(
        (source, target)
        for source in sorted(workflow.shards(direction)[0])
        for rules in (table_rules(snapshot, workflow, direction, source),)
        for target in fed_shards(snapshot, workflow, direction, source)
        if any(rule.feeds(target) for rule in rules)
    )


def source_shards(snapshot: Snapshot, workflow: Workflow, direction: Direction) -> tuple[str, ...]:
    """The source shards that have a span, sorted; each needs a publication and a slot."""
    return tuple(sorted({source for source, _ in stream_pairs(snapshot, workflow, direction)}))


def span_spec(
    snapshot: Snapshot, workflow: Workflow, direction: Direction, source_shard: str
) -> SpanSpec:
    """The span of one source shard; ``epoch`` 0, because whoever starts a worker takes one."""
    source_keyspace, target_keyspace = workflow.keyspaces(direction)
    name = replication_name(workflow, direction, source_shard)
    targets = tuple(
        TargetSpec(
            shard=stream.target_shard,
            key_range=str(snapshot.shard(target_keyspace, stream.target_shard).key_range),
            endpoint=endpoint_of(snapshot, target_keyspace, stream.target_shard),
            stream_id=stream.stream_id,
        )
        for stream in workflow.streams_of(direction)
        if stream.source_shard == source_shard
    )
    return SpanSpec(
        workflow_uuid=workflow.uuid,
        workflow=workflow.name,
        direction=direction,
        source_keyspace=source_keyspace,
        source_shard=source_shard,
        source=endpoint_of(snapshot, source_keyspace, source_shard),
        target_keyspace=target_keyspace,
        slot=name,
        publication=name,
        tables=table_rules(snapshot, workflow, direction, source_shard),
        targets=targets,
        epoch=0,
        options=SpanOptions(
            copy_threads=workflow.options.copy_threads,
            log_budget_bytes=workflow.options.log_budget_bytes,
            on_ddl=workflow.options.on_ddl,
            stop_after_copy=workflow.options.stop_after_copy,
        ),
    )


def direction_spans(
    snapshot: Snapshot, workflow: Workflow, direction: Direction
) -> tuple[SpanSpec, ...]:
    """Every span of one direction of a workflow, by source shard."""
    shards = sorted({s.source_shard for s in workflow.streams_of(direction)})
    return tuple(span_spec(snapshot, workflow, direction, shard) for shard in shards)


def desired_spans(snapshot: Snapshot, workflows: Iterable[Workflow]) -> list[SpanSpec]:
    """Every span that should have a worker now, by span id."""
    found = [
        span
        for workflow in workflows
        if workflow.phase is Phase.ACTIVE
        for direction in workflow.wanted
        for span in direction_spans(snapshot, workflow, direction)
    ]
    return sorted(found, key=lambda span: span.span_id)
