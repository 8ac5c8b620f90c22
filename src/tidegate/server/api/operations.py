"""Resources of cluster operations: enqueue, look, follow, pause, resume, cancel, retry, approve.

Decides what a request is; an answer comes as soon as it is stored, and the work goes on in the
node. Whoever follows an operation takes its events, or asks again with the version, or the number
of the last line, that they have seen, and the answer waits until there is more.
"""

from collections.abc import Callable
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse
from pydantic import Field

from tidegate.operations import shown
from tidegate.operations.model import ClusterOperation, OperationState
from tidegate.operations.service import PRIORITY_MAX
from tidegate.server import operation_feed
from tidegate.server.access import OPERATE, READ, AccessRole, caller_of
from tidegate.server.api.common import Body, DryRun, Json, Node, many, one
from tidegate.server.headers import LARGEST, whole_number

router = APIRouter(prefix="/v1/operations", tags=["operations"])

#: Requests that wait at the same time; others wait for their turn.
WAITING = anyio.CapacityLimiter(64)
#: How long one may wait; a client asks again.
WAIT_MAX_S = 10.0
PAGE = 200
LINES = 1000
PARAMETERS_MAX = 64

WaitS = Annotated[
    float, Query(ge=0, le=WAIT_MAX_S, description="Answer when there is news, or after so long.")
]


def _name(request: Request) -> str:
    return caller_of(request.scope).name


def _changed(
    verb: Callable[..., ClusterOperation], operation_id: str, request: Request, *arguments: Any
) -> Json:
    """What became of an operation by a verb that the caller of a request asked for."""
    return one(shown.details(verb(operation_id, *arguments, caller=_name(request))))


def _may_ask(node: Node, request: Request, operation_id: str) -> None:
    """Refuse a caller without the role that operations of this kind need."""
    name = node.operations.store.get(operation_id).name
    caller_of(request.scope).check(AccessRole(node.operations.role_of(name)))


#: Of what is asked of an operation that is there.
ASK = [OPERATE, Depends(_may_ask)]


class EnqueueBody(Body):
    """An operation to enqueue: its task, the task's parameters as text."""

    task: str
    parameters: dict[str, str] = Field(default_factory=dict, max_length=PARAMETERS_MAX)
    key: str | None = Field(None, description="The same request with the same key is one operation")
    pause_before: tuple[str, ...] = Field((), max_length=PARAMETERS_MAX)
    priority: int = Field(
        0, ge=-PRIORITY_MAX, le=PRIORITY_MAX, description="The highest one begins first."
    )
    undo: bool = Field(default=False, description="When it fails, take back what it has done.")


class SkipBody(Body):
    """The key of a task that failed, and why the operation may go on without it."""

    task: str
    reason: str = Field(max_length=1000)


class ApproveBody(Body):
    """The container to approve, by its path; without one, the one that waits."""

    container: str | None = None


@router.post("", status_code=201, dependencies=[OPERATE])
def enqueue_operation(
    node: Node, request: Request, body: EnqueueBody, *, dry_run: DryRun = False
) -> Json:
    """Store an operation, which begins by itself; a dry run answers with its plan."""
    service = node.operations
    caller = caller_of(request.scope)
    caller.check(AccessRole(service.catalogue.operation(body.task).role))
    if dry_run:
        plan = service.preview(body.task, body.parameters)
        return one({"name": body.task, "lines": plan.lines()}, dry_run=True)
    added = service.enqueue_cluster_operation(
        body.task,
        body.parameters,
        key=body.key,
        pause_before=body.pause_before,
        priority=body.priority,
        undo=body.undo,
        caller=caller.name,
    )
    return one(shown.details(added))


@router.get("", dependencies=[READ])
def list_operations(
    node: Node,
    *,
    state: Annotated[list[OperationState] | None, Query(max_length=8)] = None,
    name: str | None = None,
    caller: Annotated[str | None, Query(description="Only those this token enqueued.")] = None,
    before: Annotated[str | None, Query(description="Only older ones than this one.")] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE)] = 50,
) -> Json:
    """The newest operations; ``next_before`` asks for the page after this one, null: none is."""
    states = [each.value for each in state or ()]
    found = node.operations.list(
        states=states, name=name, caller=caller, before=before, limit=limit + 1
    )
    page = found[:limit]
    return many(map(shown.brief, page)) | {
        "next_before": page[-1].id if len(found) > limit else None
    }


@router.get("/{operation_id}", dependencies=[READ])
async def show_operation(
    node: Node,
    operation_id: str,
    *,
    after_version: Annotated[int, Query(ge=0, le=LARGEST)] = 0,
    wait_s: WaitS = 0.0,
) -> Json:
    """An operation with its tasks; with ``wait_s``, once it is newer than ``after_version``."""

    def look() -> Json:
        operation = node.operations.watch(operation_id, after_version, wait_s)
        return shown.details(operation)

    return one(await _in_thread(look, wait_s))


@router.get(
    "/{operation_id}/log",
    responses={200: {"content": {"text/event-stream": {}}}},
    dependencies=[READ],
)
async def show_operation_log(
    node: Node,
    operation_id: str,
    *,
    after: Annotated[int, Query(ge=0, le=LARGEST, description="Lines after this number.")] = 0,
    limit: Annotated[int, Query(ge=1, le=LINES)] = LINES,
    wait_s: WaitS = 0.0,
    watch: Annotated[bool, Query(description="Stay and send an event for each line.")] = False,
    last_event_id: Annotated[str | None, Header(description="The number seen last.")] = None,
) -> Response:
    """Lines of an operation's log, oldest first; numbers have no gaps.

    With ``watch`` the answer is a stream of server-sent events: ``line``, whose id is the line's
    number, and ``operation`` after each change, until the operation has ended.
    """
    if watch:
        await anyio.to_thread.run_sync(node.operations.store.get, operation_id)
        seen = whole_number(last_event_id) if last_event_id else None
        return EventSourceResponse(
            operation_feed.follow(
                node.operations, operation_id, seen or after, lambda: node.feed.is_closed
            ),
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    def look() -> Json:
        found = node.operations.follow(operation_id, after, limit, wait_s)
        return many(map(shown.line, found))

    return JSONResponse(await _in_thread(look, wait_s))


@router.post("/{operation_id}/pause", dependencies=ASK)
def pause_operation(node: Node, request: Request, operation_id: str) -> Json:
    """Let the tasks that run end, and start no more."""
    return _changed(node.operations.pause, operation_id, request)


@router.post("/{operation_id}/resume", dependencies=ASK)
def resume_operation(node: Node, request: Request, operation_id: str) -> Json:
    """Go on with a paused operation."""
    return _changed(node.operations.resume, operation_id, request)


@router.post("/{operation_id}/cancel", dependencies=ASK)
def cancel_operation(node: Node, request: Request, operation_id: str) -> Json:
    """Stop an operation; refused after its point of no return. What was done stays."""
    return _changed(node.operations.cancel, operation_id, request)


@router.post("/{operation_id}/undo", dependencies=ASK)
def undo_operation(node: Node, request: Request, operation_id: str) -> Json:
    """Take back what an operation did that failed or was cancelled, the last task first."""
    return _changed(node.operations.undo, operation_id, request)


@router.post("/{operation_id}/retry", dependencies=ASK)
def retry_operation(node: Node, request: Request, operation_id: str) -> Json:
    """Begin a failed operation again, with what failed."""
    return _changed(node.operations.retry, operation_id, request)


@router.post("/{operation_id}/skip", dependencies=ASK)
def skip_operation_task(node: Node, request: Request, operation_id: str, body: SkipBody) -> Json:
    """Go on without a task that failed; the reason is kept."""
    return _changed(node.operations.skip, operation_id, request, body.task, body.reason)


@router.post("/{operation_id}/approve", dependencies=ASK)
def approve_operation(node: Node, request: Request, operation_id: str, body: ApproveBody) -> Json:
    """Let a container start that waits for an approval."""
    return _changed(node.operations.approve, operation_id, request, body.container)


async def _in_thread(look: Callable[[], Json], wait_s: float) -> Json:
    if wait_s:
        return await anyio.to_thread.run_sync(look, limiter=WAITING)
    return await anyio.to_thread.run_sync(look)
