"""Resources of API tokens: make one, list them, revoke one."""

from datetime import UTC, datetime

from fastapi import APIRouter, Request

from tidegate.cluster.access_tokens import AccessToken, AccessTokens, check
from tidegate.server.access import ADMIN, AccessRole, caller_of
from tidegate.server.api.common import Body, ClusterNode, DryRun, Json, Now, many, one
from tidegate.server.tokens import new_token

router = APIRouter(prefix="/v1/tokens", tags=["tokens"])


class NewTokenBody(Body):
    """Whom a token is for, what it may do, and for how long; without a time it does not expire."""

    name: str
    role: AccessRole
    ttl_s: float | None = None


@router.post("", status_code=201, dependencies=[ADMIN])
def create_token(
    node: ClusterNode, now: Now, request: Request, body: NewTokenBody, dry_run: DryRun = False
) -> Json:
    """Make a token; its answer is the only place where it is shown."""
    check(body.name, body.ttl_s)
    if dry_run:
        return one({"name": body.name, "role": body.role}, dry_run=True)
    token = new_token()
    made = AccessTokens(node.database).create(
        body.name, token, body.role, ttl_s=body.ttl_s, created_by=caller_of(request.scope).name
    )
    now.tokens.refresh()
    return one({**_shown(made), "token": token})


@router.get("", dependencies=[ADMIN])
def list_tokens(node: ClusterNode) -> Json:
    """The tokens, without themselves."""
    return many(map(_shown, AccessTokens(node.database).list()))


@router.delete("/{name}", dependencies=[ADMIN])
def revoke_token(node: ClusterNode, now: Now, name: str, dry_run: DryRun = False) -> Json:
    """Forget a token; every member refuses it within a second or two."""
    AccessTokens(node.database).revoke(name, dry_run=dry_run)
    now.tokens.refresh()
    return one({"name": name}, dry_run=dry_run)


def _shown(token: AccessToken) -> Json:
    return {
        "name": token.name,
        "role": token.role,
        "created_at": _time(token.created_at_ms),
        "expires_at": None if token.expires_at_ms is None else _time(token.expires_at_ms),
        "created_by": token.created_by,
    }


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
