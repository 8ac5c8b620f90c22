"""Resources of the cluster: its members, tokens to join it, settings of the whole.

Every member answers these itself, also one that waits for others to be upgraded.
"""

import secrets
from collections.abc import Iterator
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import Field

from tidegate.cluster import backup
from tidegate.cluster.cluster_settings import ClusterSettings, check
from tidegate.cluster.join_tokens import SECRET_BYTES, JoinToken, TokenRow
from tidegate.cluster.members import Role
from tidegate.cluster.membership import Listed, check_name
from tidegate.server.access import ADMIN, READ
from tidegate.server.api.common import Body, ClusterNode, DryRun, Json, Now, many, one

router = APIRouter(prefix="/v1/cluster", tags=["cluster"])

DEFAULT_TOKEN_TTL_S = 3600.0
PIECE_BYTES = 1024 * 1024


class EnableBody(Body):
    """The first member's name."""

    name: str


class JoinBody(Body):
    """The token that another member made."""

    token: str = Field(repr=False)


class TokenBody(Body):
    """Whom a token is for, and how long it is good."""

    name: str
    ttl_s: float = DEFAULT_TOKEN_TTL_S


class RoleBody(Body):
    """A role in the replication of the cluster database."""

    role: Role


class SettingBody(Body):
    """A value; empty: back to the default."""

    value: str


@router.get("", dependencies=[READ])
def show_cluster(node: ClusterNode) -> Json:
    """The cluster as this node sees it: engine, schema, stage, owner, settings."""
    return one(node.show())


@router.post("/enable", dependencies=[ADMIN])
def enable_cluster(node: ClusterNode, body: EnableBody, dry_run: DryRun = False) -> Json:
    """Make this node the first member of a cluster; nothing that it holds is lost."""
    identity = node.begin(body.name, dry_run=dry_run)
    return one(identity, dry_run=dry_run)


@router.post("/join", dependencies=[ADMIN])
def join_cluster(node: ClusterNode, body: JoinBody, dry_run: DryRun = False) -> Json:
    """Make this node, which holds nothing yet, a member of another node's cluster."""
    identity = node.join(JoinToken.decode(body.token), dry_run=dry_run)
    return one(identity, dry_run=dry_run)


@router.get("/backup", response_class=StreamingResponse, dependencies=[ADMIN])
def backup_cluster(node: ClusterNode, now: Now) -> StreamingResponse:
    """The cluster database at this moment as lines of JSON; it ends with a hash of all before."""
    path = now.settings.state_dir / f".backup-{secrets.token_hex(8)}"
    try:
        backup.export(node.database, path)
        file = path.open("rb")
    finally:
        path.unlink(missing_ok=True)
    return StreamingResponse(_pieces(file), media_type="application/x-ndjson")


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(PIECE_BYTES):
            yield piece


@router.get("/members", dependencies=[READ])
def list_members(node: ClusterNode) -> Json:
    """Every member, its versions, role, last heartbeat, and status with the reason."""
    owner = node.owner_name()
    return many(_member(entry, owner) for entry in node.membership.list())


@router.delete("/members/{name}", dependencies=[ADMIN])
def remove_member(
    node: ClusterNode,
    name: str,
    force: Annotated[
        bool, Query(description="Without telling it; evict: also one that works.")
    ] = False,
    evict: Annotated[bool, Query(description="Throw it out: it will not come back.")] = False,
    dry_run: DryRun = False,
) -> Json:
    """Let a member leave, or evict it; a node that waits for others can do that, too."""
    member = node.remove(name, force=force, evict=evict, dry_run=dry_run)
    return one({"member": member.name, "state": member.state}, dry_run=dry_run)


@router.put("/members/{name}/role", dependencies=[ADMIN])
def set_role(node: ClusterNode, name: str, body: RoleBody, dry_run: DryRun = False) -> Json:
    """Give a member a role in the replication of the cluster database."""
    member = node.membership.set_role(name, body.role, dry_run=dry_run)
    return one({"member": member.name, "role": body.role}, dry_run=dry_run)


@router.post("/tokens", dependencies=[ADMIN])
def create_join_token(node: ClusterNode, body: TokenBody, dry_run: DryRun = False) -> Json:
    """Make a token for one node to join under a name; it is shown this once."""
    if dry_run:
        return one({"name": check_name(body.name), "ttl_s": body.ttl_s}, dry_run=True)
    token = node.membership.create_token(body.name, secrets.token_hex(SECRET_BYTES), body.ttl_s)
    return one({"name": token.name, "token": token.encode(), "ttl_s": body.ttl_s})


@router.get("/tokens", dependencies=[ADMIN])
def list_join_tokens(node: ClusterNode) -> Json:
    """Tokens that were made, without their secrets."""
    return many(_token(row) for row in node.membership.tokens.list())


@router.delete("/tokens/{name}", dependencies=[ADMIN])
def revoke_join_token(node: ClusterNode, name: str, dry_run: DryRun = False) -> Json:
    """Forget a token."""
    if not dry_run:
        node.membership.tokens.revoke(name)
    return one({"name": name}, dry_run=dry_run)


@router.get("/settings", dependencies=[READ])
def list_settings(node: ClusterNode) -> Json:
    """Settings of the whole cluster."""
    settings = ClusterSettings(node.database)
    return many({"name": name, "value": value} for name, value in sorted(settings.all().items()))


@router.put("/settings/{name}", dependencies=[ADMIN])
def set_setting(node: ClusterNode, name: str, body: SettingBody, dry_run: DryRun = False) -> Json:
    """Set a setting of the whole cluster."""
    check(name, body.value)
    if not dry_run:
        ClusterSettings(node.database).set(name, body.value)
    return one({"name": name, "value": body.value}, dry_run=dry_run)


def _member(entry: Listed, owner: str | None) -> Json:
    member = entry.member
    return {
        "name": member.name,
        "address": member.address,
        "status": entry.status,
        "message": entry.message,
        "role": member.role,
        "is_owner": member.is_active and member.name == owner,
        "version": member.binary_version,
        "schema_version": member.schema_version,
        "api_extensions": list(member.extensions.names),
        "heartbeat_at": member.heartbeat_at,
        "fingerprint": member.fingerprint,
    }


def _token(row: TokenRow) -> Json:
    return {
        "name": row.name,
        "created_at_ms": row.created_at_ms,
        "expires_at_ms": row.expires_at_ms,
        "used_at_ms": row.used_at_ms,
    }
