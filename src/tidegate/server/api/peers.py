"""What members ask each other, and what a joining node asks: the resources under ``/peer``.

Not part of the API that people use: its only callers are nodes of one version or the next.
"""

from fastapi import APIRouter, FastAPI, Request
from pydantic import Field

from tidegate.cluster.extensions import Extensions
from tidegate.cluster.membership import Candidate
from tidegate.errors import InvalidArgumentError, NotAMemberError
from tidegate.server import problems
from tidegate.server.api.common import Body, ClusterNode, Json, one
from tidegate.server.bounds import Bounds
from tidegate.server.peers import certificate_of, peer_of
from tidegate.server.runtime import Runtime

router = APIRouter(prefix="/peer")


class JoinBody(Body):
    """What a joining node says of itself."""

    name: str
    secret: str = Field(repr=False)
    address: str
    request: str
    schema_version: int
    extensions: list[str]


class JoinedBody(Body):
    """Where replication reaches the node that has joined."""

    replication_address: str


class HeartbeatBody(Body):
    """Who asks, and the addresses of all members."""

    sender: str
    members: list[str]


class NameBody(Body):
    """A member."""

    member: str


@router.post("/join")
def join(node: ClusterNode, body: JoinBody) -> Json:
    """Let a node in that shows a token."""
    candidate = _candidate(body)
    accepted = node.membership.accept(candidate, body.secret, body.request.encode())
    return one(
        {
            "member_id": accepted.member_id,
            "cluster": accepted.cluster,
            "engine": accepted.engine,
            "database": accepted.database,
            "certificate": accepted.certificate.decode(),
            "authority_certificate": accepted.authority.certificate.decode(),
            "authority_key": accepted.authority.key.decode(),
            "peers": list(accepted.peers),
            "generation": accepted.generation,
            "succession": accepted.succession.decode(),
            "api_tokens": [],  # they are in the cluster database; members before that read this
        }
    )


@router.post("/joined")
def joined(node: ClusterNode, request: Request, body: JoinedBody) -> Json:
    """The calling node is up: make replication know it."""
    member = node.membership.joined(
        _caller(request), body.replication_address, certificate_of(request.scope)
    )
    return one({"member": member.name, "state": member.state})


@router.put("/heartbeat")
def heartbeat(node: ClusterNode, body: HeartbeatBody) -> Json:
    """Say that this member lives, and note where the others are."""
    node.note_peers(body.members)
    return one(node.stage())


@router.post("/upgraded")
def upgraded(node: ClusterNode) -> Json:
    """Another member has been upgraded: look at once whether that was the last one."""
    node.look_again.set()
    return one({})


@router.post("/removed")
def removed(node: ClusterNode, body: NameBody) -> Json:
    """This member has left: forget the cluster."""
    identity = node.identity
    if identity is None or identity.name != body.member:
        raise NotAMemberError(
            f"this node is not member {body.member}", next_step="tidegate cluster list"
        )
    node.leave()
    return one({"member": body.member})


def _candidate(body: JoinBody) -> Candidate:
    """A joining node as it describes itself.

    Raises:
        InvalidArgumentError: its extensions are none.
    """
    try:
        extensions = Extensions.of(body.extensions)
    except ValueError:
        raise InvalidArgumentError(
            "the joining node's description is not whole",
            next_step="run the same version of tidegate on all nodes, then join",
        ) from None
    return Candidate(body.name, body.address, body.schema_version, extensions)


def _caller(request: Request) -> str:
    peer = peer_of(request.scope)
    assert peer is not None, "the gate lets nobody through without a certificate"
    return peer


def create_peer_app(runtime: Runtime) -> FastAPI:
    """The resources as an application; what may reach it is decided by the listener."""
    app = FastAPI(title="Tidegate members", openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(router)
    problems.install(app)
    app.state.runtime = runtime
    app.add_middleware(Bounds, body_max_bytes=runtime.settings.limits.body_max_bytes)
    return app
