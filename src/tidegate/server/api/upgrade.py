"""Resource of the upgrade of the cluster and its shards: look, finalise, retry, skip, supersede."""

from fastapi import APIRouter

from tidegate.server import schema_upgrade
from tidegate.server.access import ADMIN, OPERATE, READ
from tidegate.server.api.common import Body, DryRun, Json, Node, Now, one
from tidegate.server.runtime import Stage

router = APIRouter(prefix="/v1/upgrade", tags=["upgrade"])


class ShardBody(Body):
    """A shard by its name, KEYSPACE/SHARD."""

    shard: str


class RetryBody(Body):
    """A shard by its name, KEYSPACE/SHARD; without one, everything that failed."""

    shard: str | None = None


@router.get("", dependencies=[READ])
def show_upgrade(now: Now) -> Json:
    """Where the upgrade is, what failed, and what keeps it from being finalised.

    A node that waits for members to be upgraded answers for itself: what it knows, and for whom it
    waits.
    """
    condition = now.condition
    if condition.services is None and condition.stage is Stage.WAITING:
        return one(schema_upgrade.waiting(condition.refusal().message))
    return one(now.services.upgrade.shown())


@router.post("/finalise", dependencies=[ADMIN])
def finalise_upgrade(node: Node, dry_run: DryRun = False) -> Json:
    """Close the way back: members of the version before may not be started any more."""
    return one({"finalised": node.upgrade.finalise(dry_run=dry_run)}, dry_run=dry_run)


@router.post("/retry", dependencies=[OPERATE])
def retry_upgrade(node: Node, body: RetryBody, dry_run: DryRun = False) -> Json:
    """Try a shard, or everything that failed, again at once."""
    changed = node.upgrade.service.retry_tenant(body.shard, dry_run=dry_run)
    return one({"retried": changed}, dry_run=dry_run)


@router.post("/skip", dependencies=[ADMIN])
def skip_upgrade(node: Node, body: ShardBody, dry_run: DryRun = False) -> Json:
    """Let the upgrade go on without a shard; it stays at its version."""
    node.upgrade.service.skip_tenant(body.shard, dry_run=dry_run)
    return one({"skipped": body.shard}, dry_run=dry_run)


@router.post("/supersede", dependencies=[ADMIN])
def supersede_upgrade(node: Node, dry_run: DryRun = False) -> Json:
    """Set an older upgrade that is stuck aside and begin this program's."""
    node.upgrade.service.supersede(dry_run=dry_run)
    return one(node.upgrade.shown(), dry_run=dry_run)
