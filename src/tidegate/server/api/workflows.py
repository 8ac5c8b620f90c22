"""Resources of workflows: create, look, start, stop, switch, reverse, complete, cancel.

Decides how a request body becomes the request value of :mod:`tidegate.workflow.requests`, and that
a workflow's version is its entity tag. A verb is answered when it has been done; every wait in it
is bounded by its own options.
"""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Response

from tidegate.server.access import OPERATE, READ
from tidegate.server.api.common import Body, Json, Node, check_version, many, one, plain
from tidegate.server.services import Services
from tidegate.workflow.model import Workflow
from tidegate.workflow.outcome import Outcome
from tidegate.workflow.overview import Overview, overviews
from tidegate.workflow.requests import (
    CancelRequest,
    CompleteRequest,
    MoveTablesCreate,
    ReshardCreate,
    SwitchRequest,
)
from tidegate.workflow.waiting import reported

router = APIRouter(prefix="/v1", tags=["workflows"])
verbs = APIRouter(prefix="/v1/workflows/{keyspace}/{name}", tags=["workflows"])

IfMatch = Annotated[str | None, Header(description="ETag of the workflow the caller saw.")]


class Target:
    """The workflow a verb is for, at the version the caller saw."""

    def __init__(
        self, node: Node, response: Response, keyspace: str, name: str, if_match: IfMatch = None
    ) -> None:
        workflow = _found(node, keyspace, name)
        check_version(if_match, workflow.version, f"workflow {workflow.key}")
        self.keyspace = keyspace
        self.name = name
        self.service = node.workflows
        self._node = node
        self._response = response

    def answer(self, outcome: Outcome) -> Json:
        """What a verb did."""
        return _outcome(self._node, outcome, self._response)


Seen = Annotated[Target, Depends()]


class DryRunBody(Body):
    """A verb without options of its own."""

    dry_run: bool = False


class StartBody(DryRunBody):
    """Start streams; ``log_budget_bytes`` replaces the budget given when the workflow was made."""

    log_budget_bytes: int | None = None


class _Create(DryRunBody):
    """The options that both kinds of create have; meanings in the command line's reference."""

    workflow: str
    cells: tuple[str, ...] = ()
    tablet_types: tuple[str, ...] = ()
    on_ddl: str = "STOP"
    defer_secondary_keys: bool = True
    auto_start: bool = True
    stop_after_copy: bool = False
    skip_schema_copy: bool = False
    copy_threads: int = 2
    log_budget_bytes: int | None = None
    set_identity: bool = False
    allow: tuple[str, ...] = ()
    leave_out_triggers: tuple[str, ...] = ()


class MoveTablesBody(_Create):
    """Move tables from one keyspace to another."""

    source_keyspace: str
    target_keyspace: str
    tables: tuple[str, ...] = ()
    all_tables: bool = False
    exclude_tables: tuple[str, ...] = ()
    source_shards: tuple[str, ...] = ()
    no_routing_rules: bool = False
    sharded_auto_increment_handling: str = "LEAVE"


class ReshardBody(_Create):
    """Give the rows of a keyspace's shards to other shards of the same keyspace."""

    keyspace: str
    source_shards: tuple[str, ...]
    target_shards: tuple[str, ...]


class SwitchBody(DryRunBody):
    """Switch or reverse traffic; times in seconds."""

    cells: tuple[str, ...] = ()
    tablet_types: tuple[str, ...] = ("PRIMARY", "REPLICA", "RDONLY")
    timeout_s: float = 30.0
    max_pause_s: float = 5.0
    max_replication_lag_allowed_s: float = 30.0
    enable_reverse_replication: bool = True
    allow_unverified: bool = False
    ignore_routers: bool = False


class CompleteBody(DryRunBody):
    """Remove the old copy and the workflow."""

    keep_data: bool = False
    keep_routing_rules: bool = False
    rename_tables: bool = False


class CancelBody(DryRunBody):
    """Remove the new copy and the workflow."""

    keep_data: bool = False
    keep_routing_rules: bool = False


@router.post("/movetables", status_code=201, dependencies=[OPERATE])
def create_movetables(node: Node, body: MoveTablesBody, response: Response) -> Json:
    """Make a MoveTables workflow; a preflight looks at everything first."""
    request = MoveTablesCreate(**_options(body))
    return _outcome(node, node.workflows.create(request, dry_run=body.dry_run), response)


@router.post("/reshard", status_code=201, dependencies=[OPERATE])
def create_reshard(node: Node, body: ReshardBody, response: Response) -> Json:
    """Make a Reshard workflow; a preflight looks at everything first."""
    request = ReshardCreate(**_options(body))
    return _outcome(node, node.workflows.create(request, dry_run=body.dry_run), response)


@router.get("/workflows", dependencies=[READ])
def list_workflows(node: Node, keyspace: str | None = None) -> Json:
    """All workflows, or those of a target keyspace: state, lag, last proof, next step."""
    snapshot = node.store.read()
    if keyspace is not None:
        snapshot.keyspace(keyspace)
    found = node.workflows.list(keyspace)
    seen = overviews(snapshot, found)
    return many(_listed(node, workflow, seen[workflow.uuid]) for workflow in found)


@router.get("/workflows/{keyspace}/{name}", dependencies=[READ])
def show_workflow(node: Node, keyspace: str, name: str, response: Response) -> Json:
    """A workflow's record, its traffic, and what has been done for it."""
    workflow = _found(node, keyspace, name)
    response.headers["ETag"] = f'"{workflow.version}"'
    history = [asdict(event) for event in node.workflows.history(keyspace, name)]
    seen = overviews(node.store.read(), [workflow])[workflow.uuid]
    listed = _listed(node, workflow, seen)
    return one({**listed, "workflow": workflow.shown(), "history": history})


@router.get("/workflows/{keyspace}/{name}/status", dependencies=[READ])
def show_status(node: Node, keyspace: str, name: str, response: Response) -> Json:
    """Streams, progress of the copy, lag, traffic, and the log its slots retain."""
    _found(node, keyspace, name)
    status = node.workflows.status(keyspace, name)
    response.headers["ETag"] = f'"{status.workflow.version}"'
    spans = _spans(node, status.workflow)
    answer = status.to_json()
    answer["waits"] += reported(spans)
    return one({**answer, "spans": spans})


@verbs.post("/start", dependencies=[OPERATE])
def start_workflow(at: Seen, body: StartBody) -> Json:
    """Let stopped or failed streams go on."""
    return at.answer(
        at.service.start(
            at.keyspace,
            at.name,
            dry_run=body.dry_run,
            log_budget_bytes=body.log_budget_bytes,
        )
    )


@verbs.post("/stop", dependencies=[OPERATE])
def stop_workflow(at: Seen, body: DryRunBody) -> Json:
    """Stop the streams where they are."""
    return at.answer(at.service.stop(at.keyspace, at.name, dry_run=body.dry_run))


@verbs.post("/switchtraffic", dependencies=[OPERATE])
def switch_traffic(at: Seen, body: SwitchBody) -> Json:
    """Send reads, writes or both to the target."""
    request = SwitchRequest(keyspace=at.keyspace, workflow=at.name, **_options(body))
    return at.answer(at.service.switch_traffic(request, dry_run=body.dry_run))


@verbs.post("/reversetraffic", dependencies=[OPERATE])
def reverse_traffic(at: Seen, body: SwitchBody) -> Json:
    """Send reads, writes or both back to the source."""
    request = SwitchRequest(keyspace=at.keyspace, workflow=at.name, **_options(body))
    return at.answer(at.service.reverse_traffic(request, dry_run=body.dry_run))


@verbs.post("/complete", dependencies=[OPERATE])
def complete_workflow(at: Seen, body: CompleteBody) -> Json:
    """Remove the old copy and the workflow."""
    request = CompleteRequest(keyspace=at.keyspace, workflow=at.name, **_options(body))
    return at.answer(at.service.complete(request, dry_run=body.dry_run))


@verbs.post("/cancel", dependencies=[OPERATE])
def cancel_workflow(at: Seen, body: CancelBody) -> Json:
    """Remove the new copy and the workflow."""
    request = CancelRequest(keyspace=at.keyspace, workflow=at.name, **_options(body))
    return at.answer(at.service.cancel(request, dry_run=body.dry_run))


def _options(body: DryRunBody) -> dict[str, Any]:
    return body.model_dump(exclude={"dry_run"})


def _found(node: Services, keyspace: str, name: str) -> Workflow:
    """The workflow; a keyspace that does not exist is named as such."""
    node.store.read().keyspace(keyspace)
    return node.workflows.show(keyspace, name)


def _outcome(node: Services, outcome: Outcome, response: Response) -> Json:
    node.supervisor.wake()
    if outcome.workflow is not None:
        response.headers["ETag"] = f'"{outcome.workflow.version}"'
    return one(outcome.to_json(), dry_run=outcome.dry_run)


def _listed(node: Services, workflow: Workflow, seen: Overview) -> Json:
    operation = workflow.operation
    return {
        "name": workflow.name,
        "keyspace": workflow.target_keyspace,
        "type": str(workflow.type),
        "source": _side(workflow.source_keyspace, workflow.source_shards),
        "target": _side(workflow.target_keyspace, workflow.target_shards),
        "tables": list(workflow.tables),
        **seen.condition.to_json(),
        "unreachable": seen.unreachable,
        "waits": [
            *(wait.to_json() for wait in seen.waits),
            *reported(_spans(node, workflow)),
        ],
        "operation": None if operation is None else str(operation.kind),
        "traffic": str(node.state(workflow)),
        "alarms": node.slots.alarms(workflow.uuid),
        "version": workflow.version,
        "created_at": plain(workflow.created_at),
    }


def _spans(node: Services, workflow: Workflow) -> list[Json]:
    """What is known of the workers of a workflow."""
    return [s for s in node.supervisor.status() if s["span"].startswith(workflow.uuid)]


def _side(keyspace: str, shards: tuple[str, ...]) -> str:
    return f"{keyspace}/{','.join(shards)}"
