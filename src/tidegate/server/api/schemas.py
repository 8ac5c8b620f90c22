"""Schemas of shards: compared, and copied from one to another.

Decides how a request body becomes a :class:`tidegate.workflow.requests.SchemaRequest`.
"""

from fastapi import APIRouter

from tidegate.server.access import OPERATE, READ
from tidegate.server.api.common import Body, Json, Node, one
from tidegate.workflow.requests import SchemaRequest

router = APIRouter(prefix="/v1/schema", tags=["schemas"])


class SchemaBody(Body):
    """Two shards, and which of their objects are compared; without tables the whole shard."""

    source_keyspace: str
    source_shard: str
    target_keyspace: str
    target_shard: str
    source_tablet: str | None = None
    tables: tuple[str, ...] = ()
    exclude_tables: tuple[str, ...] = ()
    include_views: bool = True


class SchemaCopyBody(SchemaBody):
    """Make at the target shard what it lacks of the source's schema."""

    verify: bool = True
    allow: tuple[str, ...] = ()
    dry_run: bool = False


@router.post("/diff", dependencies=[READ])
def compare_schemas(node: Node, body: SchemaBody) -> Json:
    """How the schema of one shard differs from another's; changes nothing."""
    report = node.workflows.compare_schemas(SchemaRequest(**body.model_dump()))
    return one(report.to_json())


@router.post("/copy", dependencies=[OPERATE])
def copy_schema(node: Node, body: SchemaCopyBody) -> Json:
    """Make what the target shard lacks in one transaction, and compare again before it commits."""
    request = SchemaRequest(**body.model_dump(exclude={"dry_run"}))
    report = node.workflows.copy_schema(request, dry_run=body.dry_run)
    return one(report.to_json(), dry_run=body.dry_run)
