"""Admits a new workflow or refuses it, before anything is changed anywhere.

Decides what a request means for the topology there is: shards, tables, what has to be made, what
is already there. All reasons to refuse are found here, most of them by the preflight; the creation
that follows only acts. It must not write.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tidegate.dataplane.model import Direction
from tidegate.errors import FailedPreconditionError, InvalidArgumentError, TidegateError
from tidegate.topology.names import TableName
from tidegate.workflow import identities, spans, target_tables, traffic, trial
from tidegate.workflow.model import Workflow, WorkflowOptions
from tidegate.workflow.preflight.check import errors, refuse_errors, run_checks
from tidegate.workflow.preflight.checks import reshard_and_move, table_in_workflow
from tidegate.workflow.preflight.facts import ActiveWorkflow, PreflightRequest
from tidegate.workflow.preflight.gather import gather
from tidegate.workflow.preflight.registry import run_preflight
from tidegate.workflow.requests import MoveTablesCreate, ReshardCreate
from tidegate.workflow.state import AutoIncrementHandling, WorkflowType, compare_shards
from tidegate.workflow.store import taken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tidegate.topology.model import Snapshot
    from tidegate.workflow.preflight.check import Finding
    from tidegate.workflow.preflight.facts import Facts
    from tidegate.workflow.requests import CreateRequest
    from tidegate.workflow.sessions import Sessions
    from tidegate.workflow.target_tables import TargetPlan

#: What another workflow can bring about that begins at the same moment.
CLASHES: Final = (table_in_workflow.CHECK, reshard_and_move.CHECK)


FOUND_AT_SERVERS: Final = frozenset(
    {"TG-PF-305", "TG-PF-306", "TG-PF-309", "TG-PF-311", "TG-PF-407", "TG-PF-409", "TG-PF-410"}
    | {"TG-PF-434", "TG-PF-436"}
)
"""Checks whose errors say nothing about the tables themselves: slots, sessions, rights, roles."""


@dataclass(frozen=True)
class Admission:
    """A request that may be carried out: the record to be, and the tables to be made for it.

    Attributes:
        wanted, facts: what was asked for and found; others may begin until it is recorded.
    """

    workflow: Workflow
    target_plan: TargetPlan
    findings: tuple[Finding, ...]
    wanted: PreflightRequest
    facts: Facts

    def refuse_others(self, existing: Iterable[Workflow]) -> None:
        """Look for workflows that clash once more, in the transaction that records this one.

        Raises:
            PreflightError: somebody was first; the finding names the other workflow.
        """
        facts = replace(self.facts, workflows=active_workflows(existing))
        findings = run_checks(CLASHES, self.wanted, facts)
        refuse_errors(findings, f"workflow {self.wanted.workflow}")


def admit(
    request: CreateRequest,
    snapshot: Snapshot,
    sessions: Sessions,
    existing: Callable[[], Sequence[Workflow]],
    *,
    uuid: str,
    created_at: str,
) -> Admission:
    """Validate a request completely.

    Workflows are listed before the servers are looked at and again after each look: a table that
    another workflow has just made is not found without that workflow.

    Raises:
        NotFoundError: a keyspace, shard or table it names does not exist.
        AlreadyExistsError: the name is taken.
        PreflightError: at least one finding refuses; all findings are in its details.
        FailedPreconditionError, InvalidArgumentError: it asks for what is not carried.
        ConnectError: a server cannot be reached.
    """
    for keyspace in (request.source_keyspace, request.target_keyspace):
        snapshot.keyspace(keyspace)
    known: dict[str, Workflow] = {}

    def listed() -> tuple[ActiveWorkflow, ...]:
        known.update({workflow.uuid: workflow for workflow in existing()})
        return active_workflows(known.values())

    if any(
        w.target_keyspace == request.target_keyspace and w.name == request.workflow
        for w in listed()
    ):
        raise taken(request.target_keyspace, request.workflow)
    wanted = preflight_request(request, snapshot)
    facts = gather(wanted, snapshot, sessions)
    choices = identities.chosen(facts) if request.set_identity else ()
    facts = replace(identities.assumed(facts, choices), workflows=listed())
    findings = run_preflight(wanted, facts)
    if not can_be_tried(findings):
        refuse_errors(findings, f"workflow {request.workflow}")
    workflow = _record(request, wanted, facts, uuid=uuid, created_at=created_at)
    workflow = replace(workflow, identities=choices)
    spans.stream_pairs(snapshot, workflow, Direction.FORWARD)
    spans.stream_pairs(snapshot, workflow, Direction.REVERSE)
    try:
        target_plan = target_tables.plan(sessions, workflow, facts)
        facts, target_plan = trial.tried(sessions, workflow, wanted, facts, target_plan)
    except TidegateError:
        findings = run_preflight(wanted, replace(facts, workflows=listed()))
        refuse_errors(findings, f"workflow {request.workflow}")
        raise
    findings = run_preflight(wanted, replace(facts, workflows=listed()))
    refuse_errors(findings, f"workflow {request.workflow}")
    workflow = replace(
        workflow,
        created_tables=target_plan.created,
        created_support=target_plan.support,
        sequences=tuple(map(str, facts.reached.sequences)),
        prior_rules=traffic.prior_rules(snapshot, workflow),
    )
    return Admission(workflow, target_plan, tuple(findings), wanted, facts)


def active_workflows(existing: Iterable[Workflow]) -> tuple[ActiveWorkflow, ...]:
    """What the preflight has to know of the workflows there are."""
    return tuple(
        ActiveWorkflow(
            w.name,
            w.source_keyspace,
            w.target_keyspace,
            tuple(map(TableName.parse, w.tables)),
            reshards=w.type is WorkflowType.RESHARD,
        )
        for w in existing
    )


def can_be_tried(findings: Iterable[Finding]) -> bool:
    """Whether it makes sense to try a creation at the targets: only they may still be lacking.

    Whoever grants rights wants the whole list, also of what only a trial shows.
    """
    return all(finding.id in FOUND_AT_SERVERS for finding in errors(findings))


def preflight_request(request: CreateRequest, snapshot: Snapshot) -> PreflightRequest:
    """What the preflight is to look at."""
    if isinstance(request, ReshardCreate):
        return PreflightRequest(
            workflow=request.workflow,
            workflow_type=WorkflowType.RESHARD,
            source_keyspace=request.keyspace,
            target_keyspace=request.keyspace,
            source_shards=request.source_shards,
            target_shards=request.target_shards,
            skip_schema_copy=request.skip_schema_copy,
            leave_out_triggers=request.leave_out_triggers,
            accepted=frozenset(request.allow),
            log_budget_bytes=request.log_budget_bytes,
        )
    return PreflightRequest(
        workflow=request.workflow,
        workflow_type=WorkflowType.MOVE_TABLES,
        source_keyspace=request.source_keyspace,
        target_keyspace=request.target_keyspace,
        source_shards=_source_shards(request, snapshot),
        target_shards=_serving(snapshot, request.target_keyspace),
        tables=tuple(map(TableName.parse, request.tables)),
        exclude_tables=tuple(map(TableName.parse, request.exclude_tables)),
        skip_schema_copy=request.skip_schema_copy,
        leave_out_triggers=request.leave_out_triggers,
        accepted=frozenset(request.allow),
        log_budget_bytes=request.log_budget_bytes,
    )


def _serving(snapshot: Snapshot, keyspace: str) -> tuple[str, ...]:
    found = tuple(sorted(shard.name for shard in snapshot.serving_shards(keyspace)))
    if not found:
        raise FailedPreconditionError(
            f"keyspace {keyspace} has no serving shard",
            next_step=f"tidegate shard list {keyspace}",
            keyspace=keyspace,
        )
    return found


def _source_shards(request: MoveTablesCreate, snapshot: Snapshot) -> tuple[str, ...]:
    serving = _serving(snapshot, request.source_keyspace)
    if request.source_shards:
        compare_shards(request.source_keyspace, request.source_shards, serving)
    return serving


def _record(
    request: CreateRequest,
    wanted: PreflightRequest,
    facts: Facts,
    *,
    uuid: str,
    created_at: str,
) -> Workflow:
    tables = tuple(sorted(str(name) for name in facts.wanted))
    if not tables:
        raise InvalidArgumentError(
            f"there are no tables to move in {request.source_keyspace}",
            next_step="name tables that exist",
        )
    moved = request if isinstance(request, MoveTablesCreate) else None
    vschema = facts.snapshot.vschema(request.target_keyspace)
    declares = moved is not None and not vschema.sharded and not moved.no_routing_rules
    added = tuple(t for t in tables if t not in vschema.tables) if declares else ()
    return Workflow(
        uuid=uuid,
        name=request.workflow,
        type=WorkflowType.MOVE_TABLES if moved else WorkflowType.RESHARD,
        source_keyspace=request.source_keyspace,
        target_keyspace=request.target_keyspace,
        source_shards=tuple(sorted(wanted.source_shards)),
        target_shards=tuple(sorted(wanted.target_shards)),
        tables=tables,
        options=WorkflowOptions(
            cells=request.cells,
            tablet_types=request.tablet_types,
            on_ddl=request.on_ddl,
            defer_secondary_keys=request.defer_secondary_keys,
            stop_after_copy=request.stop_after_copy,
            no_routing_rules=moved is not None and moved.no_routing_rules,
            skip_schema_copy=request.skip_schema_copy,
            sharded_auto_increment_handling=(
                moved.sharded_auto_increment_handling if moved else AutoIncrementHandling.LEAVE
            ),
            copy_threads=request.copy_threads,
            log_budget_bytes=request.log_budget_bytes,
            allow=request.allow,
        ),
        added_vschema=added,
        created_at=created_at,
    )
