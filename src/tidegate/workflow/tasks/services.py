"""What each call of a task means here: which verb of a workflow it is, and when it is done.

Decides the mapping. An operation makes one workflow, named after the operation, so a second attempt
finds what the first one made:

* ``SplitClone`` makes the Reshard, or joins it when another source of the same operation has made
  it, and waits until all rows are copied. The tables are at the destinations already.
* ``WaitForFilteredReplication`` waits until the streams into a shard lag less than asked.
* ``SplitDiff`` compares all destinations at one moment and judges one of them; the tasks for the
  others find the same comparison, as long as it found what was right.
* ``MigrateServedTypes`` and ``MigrateServedFrom`` switch the traffic of one type; of several for
  the same type the first one does it, the others find it done.
* ``RebuildKeyspaceGraph`` checks that the shards that serve cover the key space: routes are made
  from the shards' records at each change, so there is nothing else to rebuild.

An option that cannot act is refused by name, before anything is stored.
"""

from __future__ import annotations

import time
import uuid as uuids
from typing import TYPE_CHECKING, Any, Final

from tidegate.durations import duration_s
from tidegate.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    MismatchError,
    NotFoundError,
    StreamFailedError,
    VDiffFailedError,
    WaitTimeoutError,
)
from tidegate.operations.tasks import names
from tidegate.topology.connections import server_of
from tidegate.topology.records import READ_TYPES, TabletType
from tidegate.workflow.condition import WorkflowState, carrying
from tidegate.workflow.requests import (
    MoveTablesCreate,
    ReshardCreate,
    SchemaRequest,
    SwitchRequest,
)
from tidegate.workflow.tasks.healthy import require_healthy_rdonly
from tidegate.workflow.tasks.leaves import keyspace_and_shard
from tidegate.workflow.vdiff.model import VDiffOptions, is_over

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tidegate.dataplane.model import SpanSpec
    from tidegate.operations.tasks import TaskHandle
    from tidegate.topology.model import Snapshot
    from tidegate.topology.store import TopologyStore
    from tidegate.workflow.model import Workflow
    from tidegate.workflow.service import WorkflowService
    from tidegate.workflow.status import WorkflowStatus
    from tidegate.workflow.tasks.calls import ServiceCall
    from tidegate.workflow.vdiff.service import VDiffService

POLL_S: Final = 1.0
CATCH_UP_MAX_S: Final = 3600.0
"""How long a stream may take to come close enough."""

_NOT_COPIED: Final = frozenset(
    {
        WorkflowState.CREATING,
        WorkflowState.COPYING,
        WorkflowState.STOPPED,
        WorkflowState.ERROR,  # while a shard is away
    }
)
_NO_EFFECT: Final[Mapping[str, str]] = {
    "chunk_count": "a copy chooses its chunks itself",
    "min_rows_per_chunk": "a copy chooses its chunks itself",
    "write_query_max_rows": "rows are copied as a stream, without statements for rows",
    "write_query_max_size": "rows are copied as a stream, without statements for rows",
    "max_tps": "a copy slows down by itself when the source suffers",
    "max_replication_lag": "a copy slows down by itself when the source suffers",
}
_WHOLE_SHARD: Final = "the destinations take over all tables of their key range"
_EVERYWHERE: Final = "the graph of a keyspace is one for all cells"


class ClusterTaskServices:
    """Acts on the cluster; any thread may call it."""

    def __init__(
        self, workflows: WorkflowService, vdiffs: VDiffService, topology: TopologyStore
    ) -> None:
        self._workflows = workflows
        self._vdiffs = vdiffs
        self._topology = topology
        self._verbs: dict[str, Callable[[ServiceCall, TaskHandle], str]] = {
            "CopySchemaShard": self._copy_schema,
            "SplitClone": self._split_clone,
            "VerticalSplitClone": self._vertical_clone,
            "WaitForFilteredReplication": self._wait_for_replication,
            "SplitDiff": self._diff,
            "VerticalSplitDiff": self._diff,
            "MigrateServedTypes": self._migrate,
            "MigrateServedFrom": self._migrate,
            "RebuildKeyspaceGraph": self._check_graph,
        }

    # -- refused before anything is stored

    def check(self, call: ServiceCall) -> None:
        """Refuse options that cannot act, and shards or tablets that are missing.

        Raises:
            InvalidArgumentError: an option cannot act.
            NotFoundError: a keyspace or shard does not exist.
            FailedPreconditionError: a shard has no primary tablet, or serves and must not.
        """
        for name, value in call.options.items():
            if why := refused_because(call.verb, name, value):
                raise InvalidArgumentError(
                    f"{call.verb}: {name}={value} would have no effect: {why}",
                    next_step=f"leave {name} out",
                    parameter=name,
                )
        snapshot = self._topology.read()
        if call.verb == "RebuildKeyspaceGraph":
            snapshot.keyspace(call.args[0])
            return
        if call.verb == "HorizontalResharding":
            require_sides(snapshot, *call.args)
            return
        if call.verb == "VerticalSplit":
            require_all_shards(snapshot, *call.args)
            return
        places = call.args if call.verb == "CopySchemaShard" else call.args[:1]
        for place in places:
            snapshot.primary_of(*keyspace_and_shard(place))

    def servers(self, call: ServiceCall) -> tuple[str, ...]:
        """The servers of the primaries of all shards that a composite names."""
        snapshot = self._topology.read()
        if call.verb == "HorizontalResharding":
            keyspace, *lists = call.args
            places = [(keyspace, shard) for each in lists for shard in names(each)]
        else:
            source, destination, shards = call.args
            places = [(each, s) for each in (source, destination) for s in names(shards)]
        found = {server_of(snapshot.primary_of(*place).conninfo) for place in places}
        return tuple(sorted(found))

    def call(self, call: ServiceCall, handle: TaskHandle) -> str:
        """See the module.

        Raises:
            TidegateError: it was not done.
        """
        self.check_healthy(call)
        return self._verbs[call.verb](call, handle)

    def check_healthy(self, call: ServiceCall) -> None:
        """As many RDONLY tablets of the shard answer as were asked for."""
        wanted = call.options.get("min_healthy_rdonly_tablets")
        if wanted:
            keyspace, shard = keyspace_and_shard(call.args[0])
            require_healthy_rdonly(self._topology.read(), keyspace, shard, int(wanted))

    # -- the verbs

    def _copy_schema(self, call: ServiceCall, handle: TaskHandle) -> str:
        (source, source_shard), (target, target_shard) = map(keyspace_and_shard, call.args)
        report = self._workflows.copy_schema(
            SchemaRequest(
                source_keyspace=source,
                source_shard=source_shard,
                target_keyspace=target,
                target_shard=target_shard,
                tables=_names(call, "tables"),
                exclude_tables=_names(call, "exclude_tables"),
            )
        )
        for statement in report.statements:
            handle.log(statement)
        return report.summary

    def _split_clone(self, call: ServiceCall, handle: TaskHandle) -> str:
        keyspace, shard = keyspace_and_shard(call.args[0])
        name = workflow_name(handle.operation_id)
        if self._find(keyspace, name) is None:
            sources, targets = self._sides(keyspace, shard, handle)
            request = ReshardCreate(
                workflow=name,
                keyspace=keyspace,
                source_shards=sources,
                target_shards=targets,
                skip_schema_copy=True,
            )
            try:
                handle.log(self._workflows.create(request).summary)
            except AlreadyExistsError:
                handle.log(f"joins workflow {keyspace}.{name}")
        return self._copied(keyspace, name, handle)

    def _sides(
        self, keyspace: str, shard: str, handle: TaskHandle
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The sources and targets that the operation names, or those that the topology has."""
        given = handle.operation_parameters
        sources, targets = given.get("source_shard_list"), given.get("dest_shard_list")
        if sources and targets:
            return names(sources), names(targets)
        return resharding(self._topology.read(), keyspace, shard)

    def _vertical_clone(self, call: ServiceCall, handle: TaskHandle) -> str:
        keyspace, _ = keyspace_and_shard(call.args[0])
        name = workflow_name(handle.operation_id)
        if self._find(keyspace, name) is None:
            request = MoveTablesCreate(
                workflow=name,
                source_keyspace=_source_keyspace(handle),
                target_keyspace=keyspace,
                tables=_names(call, "tables"),
                skip_schema_copy=True,
            )
            try:
                handle.log(self._workflows.create(request).summary)
            except AlreadyExistsError:
                handle.log(f"joins workflow {keyspace}.{name}")
        return self._copied(keyspace, name, handle)

    def _copied(self, keyspace: str, name: str, handle: TaskHandle) -> str:
        """Wait until all rows are copied."""
        said = ""
        while True:
            status = self._workflows.status(keyspace, name, room=False)
            _require_healthy(status)
            if status.condition.state not in _NOT_COPIED:
                rows = sum(stream.rows_copied for stream in status.streams)
                return f"workflow {keyspace}.{name}: {rows} rows copied"
            text = ", ".join(f"{t.table} {t.percent:g} %" for t in status.tables[:10])
            if text != said:
                handle.log(f"copied: {text or 'nothing yet'}")
                said = text
            handle.wait(POLL_S)

    def _wait_for_replication(self, call: ServiceCall, handle: TaskHandle) -> str:
        keyspace, shard = keyspace_and_shard(call.args[0])
        name = workflow_name(handle.operation_id)
        limit_s = duration_s(call.options["max_delay"])
        deadline = time.monotonic() + CATCH_UP_MAX_S
        while True:
            lags = self._lags(keyspace, shard, name)
            known = [lag for lag in lags if lag is not None]
            if lags and len(known) == len(lags) and max(known) <= limit_s:
                return f"lag {max(known):.1f} s"
            if time.monotonic() >= deadline:
                raise WaitTimeoutError(
                    f"the streams into {keyspace}/{shard} were not within {limit_s:g} s after"
                    f" {CATCH_UP_MAX_S:g} s",
                    next_step=f"tidegate workflow status -w {name} -t {keyspace}",
                )
            handle.wait(POLL_S)

    def _lags(self, keyspace: str, shard: str, name: str) -> list[float | None]:
        status = self._workflows.status(keyspace, name, room=False)
        _require_healthy(status)
        mine = carrying(status.workflow, status.streams, status.state)
        place = f"{keyspace}/{shard}"
        if status.state.writes_switched:
            return [0.0]  # traffic has moved already: a second attempt after the switch
        return [each.lag_s for each in mine if each is not None and each.target == place]

    def _diff(self, call: ServiceCall, handle: TaskHandle) -> str:
        keyspace, shard = keyspace_and_shard(call.args[0])
        name = workflow_name(handle.operation_id)
        spans = self._workflows.spans(keyspace, name)
        uuid = comparison_of(handle.operation_id)
        self._begin_diff(spans, uuid, self._find(keyspace, name), call)
        while True:
            report = self._vdiffs.show(spans, uuid)
            mine = report["ShardSummaries"].get(shard)
            if mine is None:
                raise NotFoundError(
                    f"workflow {keyspace}.{name} has no stream into shard {shard}",
                    next_step=f"tidegate workflow show -w {name} -t {keyspace}",
                )
            if is_over(report):
                return _judged(report, shard, mine)
            handle.wait(POLL_S)

    def _begin_diff(
        self, spans: Sequence[SpanSpec], uuid: str, workflow: Workflow | None, call: ServiceCall
    ) -> None:
        """Begin the operation's comparison, or join it; one that failed is made again."""
        try:
            report = self._vdiffs.show(spans, uuid)
        except NotFoundError:
            excluded = set(_names(call, "exclude_tables"))
            tables = workflow.tables if workflow is not None and excluded else ()
            options = VDiffOptions(tables=tuple(t for t in tables if t not in excluded))
            try:
                self._vdiffs.create(spans, options, uuid=uuid)
            except AlreadyExistsError:
                return
        else:
            if is_over(report) and (report["HasMismatch"] or report["Errors"]):
                self._vdiffs.resume(spans, uuid)

    def _migrate(self, call: ServiceCall, handle: TaskHandle) -> str:
        keyspace, _ = keyspace_and_shard(call.args[0])
        request = SwitchRequest(
            keyspace=keyspace,
            workflow=workflow_name(handle.operation_id),
            tablet_types=(call.args[1].upper(),),
            cells=_names(call, "cells"),
        )
        is_back = call.options.get("reverse") == "true"
        verb = self._workflows.reverse_traffic if is_back else self._workflows.switch_traffic
        outcome = verb(request)
        for line in outcome.lines:
            handle.log(line)
        pause = "" if outcome.pause_ms is None else f"; writers waited {outcome.pause_ms:.0f} ms"
        return f"{outcome.summary}; {outcome.current_state}{pause}"

    def _check_graph(self, call: ServiceCall, handle: TaskHandle) -> str:
        (keyspace,) = call.args
        snapshot = self._topology.read()
        for cell in sorted(snapshot.cells):
            for tablet_type in (TabletType.PRIMARY, *READ_TYPES):
                snapshot.check_partition(keyspace, tablet_type, cell)
        serving = ", ".join(shard.name for shard in snapshot.serving_shards(keyspace))
        handle.log(f"{keyspace} is served by {serving}")
        return f"{keyspace} is served by {serving}"

    def _find(self, keyspace: str, name: str) -> Workflow | None:
        return next((w for w in self._workflows.list(keyspace) if w.name == name), None)


def workflow_name(operation_id: str) -> str:
    """What an operation calls its workflow."""
    return f"op_{operation_id.replace('-', '')[-12:]}"


def comparison_of(operation_id: str) -> str:
    """The UUID of an operation's comparison."""
    return str(uuids.uuid5(uuids.UUID(operation_id), "vdiff"))


def refused_because(verb: str, option: str, value: str) -> str:
    """Why an option cannot act; empty: it can."""
    if option in _NO_EFFECT:
        return _NO_EFFECT[option]
    match verb, option, value:
        case _, "online", "false":
            return "rows are copied while writers run"
        case _, "offline", "true":
            return "no tablet is taken out of service for a copy"
        case "SplitClone", "exclude_tables", _:
            return _WHOLE_SHARD
        case "RebuildKeyspaceGraph", "cells", _:
            return _EVERYWHERE
    return ""


def resharding(
    snapshot: Snapshot, keyspace: str, shard: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The sources and targets of the Reshard that takes a shard's rows elsewhere.

    The targets are the shards that overlap it and do not serve; the sources all that serve and
    overlap one of them.

    Raises:
        FailedPreconditionError: the shard does not serve, or there is no target.
    """
    own = snapshot.shard(keyspace, shard)
    every = snapshot.shards_of(keyspace)
    if not own.serving:
        raise FailedPreconditionError(
            f"shard {keyspace}/{shard} does not serve, so there is nothing to take from it",
            next_step=f"tidegate shard list {keyspace}",
        )
    targets = [s for s in every if not s.serving and s.key_range.intersects(own.key_range)]
    if not targets:
        raise FailedPreconditionError(
            f"no shard that does not serve yet overlaps {keyspace}/{shard}",
            next_step=f"tidegate shard create {keyspace} SHARD",
        )
    sources = [
        s
        for s in every
        if s.serving and any(s.key_range.intersects(target.key_range) for target in targets)
    ]
    return tuple(s.name for s in sources), tuple(s.name for s in targets)


def require_sides(snapshot: Snapshot, keyspace: str, sources: str, destinations: str) -> None:
    """The sources of a resharding serve, and its destinations do not.

    Raises:
        NotFoundError: a shard does not exist.
        FailedPreconditionError: naming the shards that do, or do not.
    """
    for listed, serve in ((sources, True), (destinations, False)):
        wrong = [n for n in names(listed) if snapshot.shard(keyspace, n).serving is not serve]
        if wrong:
            does = "does not serve, so it cannot be a source"
            raise FailedPreconditionError(
                f"shard {keyspace}/{wrong[0]}"
                f" {does if serve else 'serves already, so it cannot be a destination'}",
                next_step=f"tidegate shard list {keyspace}",
                shards=wrong,
            )


def require_all_shards(snapshot: Snapshot, source: str, destination: str, shards: str) -> None:
    """A vertical split is of whole keyspaces, whose shards have the same names.

    Raises:
        NotFoundError: a keyspace does not exist.
        InvalidArgumentError: the list is another one than that of a keyspace.
    """
    for keyspace in (source, destination):
        serving = sorted(shard.name for shard in snapshot.serving_shards(keyspace))
        if sorted(names(shards)) != serving:
            raise InvalidArgumentError(
                f"shard_list={shards} is not the list of all shards that serve {keyspace},"
                f" which is {','.join(serving) or 'empty'}",
                next_step="a vertical split moves tables of all shards; list all of them",
            )


def _names(call: ServiceCall, option: str) -> tuple[str, ...]:
    given = call.options.get(option)
    return names(given) if given else ()


def _source_keyspace(handle: TaskHandle) -> str:
    found = handle.operation_parameters.get("source_keyspace")
    if not found:
        raise FailedPreconditionError(
            "the operation does not say from which keyspace the tables are taken",
            next_step="enqueue VerticalSplitTask, which does",
        )
    return found


def _require_healthy(status: WorkflowStatus) -> None:
    """No stream of the workflow has failed or was stopped.

    Raises:
        StreamFailedError: naming it, and why.
    """
    state = status.condition.state
    if state not in {WorkflowState.ERROR, WorkflowState.STOPPED} or status.unreachable:
        return
    why = "; ".join(f"{s.source} to {s.target}: {s.message}" for s in status.streams if s.message)
    raise StreamFailedError(
        f"workflow {status.workflow.key} is {state}: {why or 'its streams do not run'}",
        next_step=status.condition.next_step,
    )


def _judged(report: Mapping[str, Any], shard: str, mine: Mapping[str, Any]) -> str:
    """What a comparison says of one shard.

    Raises:
        MismatchError: rows differ there.
        VDiffFailedError: it ended without a result there.
    """
    show = f"tidegate vdiff show {report['UUID']} -w {report['Workflow']} -t {report['Keyspace']}"
    if mine["HasMismatch"]:
        raise MismatchError(
            f"shard {report['Keyspace']}/{shard} differs from its sources", next_step=show
        )
    if mine["State"] != "completed":
        raise VDiffFailedError(
            f"the comparison of {report['Keyspace']}/{shard} is {mine['State']}:"
            f" {mine['Error'] or 'it was stopped'}",
            next_step=show,
        )
    return f"{mine['RowsCompared']} rows compared at {shard}, all equal (VDiff {report['UUID']})"
