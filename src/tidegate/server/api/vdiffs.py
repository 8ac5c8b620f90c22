"""Resources of comparisons (VDiffs) of one workflow.

Decides which streams a comparison is about: those that run now. After a switch of writes these are
the ones that lead back. What was compared before stays to be seen.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import anyio
from fastapi import APIRouter, Query
from pydantic import Field

from tidegate.dataplane.model import Direction, SpanSpec
from tidegate.errors import FailedPreconditionError, NotFoundError
from tidegate.server.access import OPERATE, READ
from tidegate.server.api.common import Body, DryRun, Json, Node, many, one
from tidegate.server.services import Services
from tidegate.workflow.vdiff.model import VDiffOptions

router = APIRouter(prefix="/v1/workflows/{keyspace}/{name}/vdiffs", tags=["vdiffs"])

#: Requests that wait for the end of a comparison at the same time; others wait for their turn.
WAITING = anyio.CapacityLimiter(64)
#: How long one may wait; a client asks again.
WAIT_MAX_S = 10.0


class VDiffBody(Body):
    """A comparison to make."""

    uuid: str | None = None
    tables: tuple[str, ...] = ()
    max_report_sample_rows: int = Field(10, ge=0)
    max_extra_rows_to_compare: int = Field(1000, ge=0)
    only_pks: bool = False
    limit: int | None = Field(None, ge=1)
    row_diff_column_truncate_at: int = Field(128, ge=8)
    auto_start: bool = True
    auto_retry: bool = True
    wait_s: float = Field(30.0, gt=0)
    max_diff_duration_s: float | None = Field(None, gt=0)
    debug_query: bool = False
    update_table_stats: bool = False


class ShardsBody(Body):
    """The target shards that a verb is about; none: all."""

    target_shards: tuple[str, ...] = ()


@router.post("", status_code=201, dependencies=[OPERATE])
def create_vdiff(
    node: Node, keyspace: str, name: str, body: VDiffBody, *, dry_run: DryRun = False
) -> Json:
    """Begin to compare; the comparison goes on in the node."""
    current = _spans(node, keyspace, name)[0]
    if not current:
        raise FailedPreconditionError(
            f"workflow {keyspace}.{name} has no streams to compare",
            next_step=f"tidegate workflow status -w {name} -t {keyspace}",
        )
    options = VDiffOptions(**body.model_dump(exclude={"uuid"}))
    report = node.vdiffs.created(current, options, uuid=body.uuid, dry_run=dry_run)
    return one({"uuid": report["UUID"], **report}, dry_run=dry_run)


@router.get("", dependencies=[READ])
def list_vdiffs(node: Node, keyspace: str, name: str) -> Json:
    """All comparisons of the workflow, newest first."""
    found = {
        report["UUID"]: report
        for spans in _spans(node, keyspace, name)
        if spans
        for report in node.vdiffs.list(spans)
    }
    return many(found.values())


@router.get("/{uuid}", dependencies=[READ])
async def show_vdiff(
    node: Node,
    keyspace: str,
    name: str,
    uuid: str,
    *,
    wait_s: Annotated[
        float, Query(ge=0, le=WAIT_MAX_S, description="Answer when it is over, or after so long.")
    ] = 0.0,
) -> Json:
    """The report of one comparison, or of the ``last`` one."""

    def show(spans: Sequence[SpanSpec]) -> Json:
        if not wait_s:
            return node.vdiffs.show(spans, uuid)
        known = node.vdiffs.show(spans, uuid)["UUID"] if uuid == "last" else uuid
        return node.vdiffs.watch(spans, known, wait_s)

    look = partial(_first, node, keyspace, name, show)
    if not wait_s:
        return one(await anyio.to_thread.run_sync(look))
    return one(await anyio.to_thread.run_sync(look, limiter=WAITING))


@router.post("/{uuid}/stop", dependencies=[OPERATE])
def stop_vdiff(
    node: Node, keyspace: str, name: str, uuid: str, body: ShardsBody, *, dry_run: DryRun = False
) -> Json:
    """Stop a comparison, or its part at some target shards; what it has done is kept."""
    asked = body.target_shards

    def stop(spans: Sequence[SpanSpec]) -> Json:
        return node.vdiffs.stop(spans, uuid, target_shards=asked, dry_run=dry_run)

    return one(_first(node, keyspace, name, stop), dry_run=dry_run)


@router.post("/{uuid}/resume", dependencies=[OPERATE])
def resume_vdiff(
    node: Node, keyspace: str, name: str, uuid: str, body: ShardsBody, *, dry_run: DryRun = False
) -> Json:
    """Go on with a stopped comparison, or with its part at some target shards."""
    asked = body.target_shards

    def resume(spans: Sequence[SpanSpec]) -> Json:
        return node.vdiffs.resume(spans, uuid, target_shards=asked, dry_run=dry_run)

    return one(_first(node, keyspace, name, resume), dry_run=dry_run)


@router.delete("/{uuid}", dependencies=[OPERATE])
def delete_vdiff(
    node: Node, keyspace: str, name: str, uuid: str, *, dry_run: DryRun = False
) -> Json:
    """Remove a comparison and its report; ``all`` removes every one."""

    def delete(spans: Sequence[SpanSpec]) -> int:
        return node.vdiffs.delete(spans, uuid, dry_run=dry_run)

    if uuid == "all":
        every = [spans for spans in _spans(node, keyspace, name) if spans]
        return one({"deleted": sum(map(delete, every))}, dry_run=dry_run)
    return one({"deleted": _first(node, keyspace, name, delete)}, dry_run=dry_run)


def _spans(node: Services, keyspace: str, name: str) -> list[list[SpanSpec]]:
    """The spans of both directions, those that run now first."""
    node.store.read().keyspace(keyspace)
    workflow = node.workflows.show(keyspace, name)
    switched = node.state(workflow).writes_switched
    order = [Direction.FORWARD, Direction.REVERSE]
    return [node.spans(workflow, direction) for direction in (order[::-1] if switched else order)]


def _first[T](
    node: Services, keyspace: str, name: str, action: Callable[[Sequence[SpanSpec]], T]
) -> T:
    """An action on the direction that knows the comparison."""
    missing: NotFoundError | None = None
    for spans in _spans(node, keyspace, name):
        if not spans:
            continue
        try:
            return action(spans)
        except NotFoundError as error:
            missing = missing or error
    raise missing or NotFoundError(
        f"workflow {name} has no VDiff",
        next_step=f"tidegate vdiff create -w {name} -t {keyspace}",
    )
