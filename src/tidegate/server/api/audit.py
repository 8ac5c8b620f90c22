"""Resources of the audit log: look at it, and whether it is whole."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query

from tidegate.cluster.audit import Audit, Entry
from tidegate.server.access import ADMIN
from tidegate.server.api.common import Json, Node, many, one
from tidegate.server.headers import LARGEST

router = APIRouter(prefix="/v1/audit", tags=["audit"])

PAGE = 1000


@router.get("", dependencies=[ADMIN])
def list_audit(
    node: Node,
    before: Annotated[
        int | None, Query(ge=0, le=LARGEST, description="Only entries before this number.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE)] = 100,
    call: Annotated[
        str | None, Query(description="Only those of this call, or of the operation of this id.")
    ] = None,
) -> Json:
    """The newest entries first; a call has one before it is done (outcome 0) and one after."""
    return many(map(_shown, Audit(node.database).newest(before=before, limit=limit, call=call)))


@router.get("/verify", dependencies=[ADMIN])
def verify_audit(node: Node) -> Json:
    """Whether an entry was changed or is missing, also at the end."""
    found = Audit(node.database).verify()
    return one(
        {
            "is_intact": found.why is None,
            "entries": found.entries,
            "first_seq": found.head.removed + 1,
            "last_seq": found.head.seq,
            "head": found.head.hash,
            "broken_at": found.broken_at,
            "why": found.why,
        }
    )


def _shown(entry: Entry) -> Json:
    at = datetime.fromtimestamp(entry.at_ms / 1000, UTC)
    kept = ("seq", "caller", "role", "origin", "member", "call", "what", "outcome", "hash")
    return {"at": at, **{name: getattr(entry, name) for name in kept}}
