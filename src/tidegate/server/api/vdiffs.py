"""Resources of comparisons (VDiffs) of one workflow.

Decides which streams a comparison is about: those that run now. After a switch of writes these are
the ones that lead back. What was compared before stays to be seen.
"""

from collections.abc import Callable, Sequence

from fastapi import APIRouter
from pydantic import Field

from tidegate.dataplane.model import Direction, SpanSpec
from tidegate.errors import FailedPreconditionError, NotFoundError
from tidegate.server.api.common import Body, Json, Node, many, one
from tidegate.server.services import Services
from tidegate.workflow.vdiff.model import VDiffOptions

router = APIRouter(prefix="/v1/workflows/{keyspace}/{name}/vdiffs", tags=["vdiffs"])


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


@router.post("", status_code=201)
def create_vdiff(node: Node, keyspace: str, name: str, body: VDiffBody) -> Json:
    """Begin to compare; the comparison goes on in the node."""
    current = _spans(node, keyspace, name)[0]
    if not current:
        raise FailedPreconditionError(
            f"workflow {keyspace}.{name} has no streams to compare",
            next_step=f"tidegate workflow status -w {name} -t {keyspace}",
        )
    options = VDiffOptions(**body.model_dump(exclude={"uuid"}))
    uuid = node.vdiffs.create(current, options, uuid=body.uuid)
    return one({"uuid": uuid, **node.vdiffs.show(current, uuid)})


@router.get("")
def list_vdiffs(node: Node, keyspace: str, name: str) -> Json:
    """All comparisons of the workflow, newest first."""
    found = {
        report["UUID"]: report
        for spans in _spans(node, keyspace, name)
        if spans
        for report in node.vdiffs.list(spans)
    }
    return many(found.values())


@router.get("/{uuid}")
def show_vdiff(node: Node, keyspace: str, name: str, uuid: str) -> Json:
    """The report of one comparison, or of the ``last`` one."""
    return one(_first(node, keyspace, name, lambda spans: node.vdiffs.show(spans, uuid)))


@router.post("/{uuid}/stop")
def stop_vdiff(node: Node, keyspace: str, name: str, uuid: str) -> Json:
    """Stop a comparison; what it has done is kept."""

    def stop(spans: Sequence[SpanSpec]) -> Json:
        node.vdiffs.show(spans, uuid)
        node.vdiffs.stop(spans, uuid)
        return node.vdiffs.show(spans, uuid)

    return one(_first(node, keyspace, name, stop))


@router.post("/{uuid}/resume")
def resume_vdiff(node: Node, keyspace: str, name: str, uuid: str) -> Json:
    """Go on with a stopped comparison."""

    def resume(spans: Sequence[SpanSpec]) -> Json:
        node.vdiffs.show(spans, uuid)
        node.vdiffs.resume(spans, uuid)
        return node.vdiffs.show(spans, uuid)

    return one(_first(node, keyspace, name, resume))


@router.delete("/{uuid}")
def delete_vdiff(node: Node, keyspace: str, name: str, uuid: str) -> Json:
    """Remove a comparison and its report; ``all`` removes every one."""
    if uuid == "all":
        every = [spans for spans in _spans(node, keyspace, name) if spans]
        return one({"deleted": sum(node.vdiffs.delete(spans, uuid) for spans in every)})
    deleted = _first(node, keyspace, name, lambda spans: node.vdiffs.delete(spans, uuid))
    return one({"deleted": deleted})


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
