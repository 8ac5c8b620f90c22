"""Administration of the members: who they are, who leads, and changes of both.

Decides how a request finds the leader, how long that may take and what its failure means. It must
not know what the members' database holds. Every method blocks, for at most ``timeout_s`` a try and
``patience_s`` altogether.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dqliteclient import ClusterClient, ClusterError, DqliteConnectionError
from dqliteclient.exceptions import DqliteError as DriverError
from dqliteclient.exceptions import OperationalError, ProtocolError
from dqlitewire import LEADER_ERROR_CODES, NodeRole

from tidegate.cluster.dqlite.dialling import run
from tidegate.cluster.dqlite.tls import DIAL_TIMEOUT_S, parsed_address
from tidegate.cluster.members import Role
from tidegate.errors import (
    ConflictError,
    DqliteError,
    FailedPreconditionError,
    InvalidArgumentError,
    NoLeaderError,
    NotFoundError,
    TidegateError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from dqliteclient import DialFunc

TIMEOUT_S: Final = 5.0
PATIENCE_S: Final = 15.0
CATCH_UP_S: Final = 60.0
"""How long a member that becomes a voter or standby may take to receive the database."""

_PAUSE_S: Final = 0.1
_BUSY_TEXTS: Final = (
    "configuration change is already in progress",
    "leadership transfer failed",  # the other one is still catching up
    "database is locked",
)
_LEADER_TEXTS: Final = ("not leader", "leadership lost", "not the leader")


_NODE_ROLES: Final = {
    Role.VOTER: NodeRole.VOTER,
    Role.STANDBY: NodeRole.STANDBY,
    Role.SPARE: NodeRole.SPARE,
}
_ROLES: Final = {node_role: role for role, node_role in _NODE_ROLES.items()}


@dataclass(frozen=True, slots=True, order=True)
class RaftMember:
    """One member as the leader knows it.

    A voter counts for the majority, a standby receives the log only, a spare nothing.
    """

    member_id: int
    address: str
    role: Role


@dataclass(frozen=True, slots=True)
class Handover:
    """What a member does before it leaves.

    Attributes:
        promote: who gets a vote first.
        heirs: voters one of which is to lead; the first that is up.
        demote: whether its own vote goes last.
    """

    promote: int | None
    heirs: tuple[int, ...]
    demote: bool


def plan_handover(members: Sequence[RaftMember], me: int, leader: int | None) -> Handover:
    """How a member steps back so that the others go on without it.

    It gives leadership to another voter; has its vote taken over by a standby, else by a spare;
    and gives its own vote up if, and only if, somebody takes it over: without that it would
    shrink the majority for a restart of a minute.
    """
    mine = next((member for member in members if member.member_id == me), None)
    if mine is None or mine.role is not Role.VOTER:
        return Handover(None, (), demote=False)
    others = sorted(member for member in members if member.member_id != me)
    voters = [member.member_id for member in others if member.role is Role.VOTER]
    waiting = sorted(
        (member for member in others if member.role is not Role.VOTER),
        key=lambda member: _NODE_ROLES[member.role],  # a standby has the log already
    )
    promote = waiting[0].member_id if waiting else None
    heirs = voters if promote is None else [*voters, promote]
    return Handover(promote, tuple(heirs) if leader == me else (), demote=promote is not None)


def raft_role(role: Role) -> int:
    """The number by which Raft knows a role."""
    return int(_NODE_ROLES[role])


class DqliteClient:
    """Requests to the members of one cluster.

    Args:
        addresses: members to ask who leads, ``host:port``; one that is up is enough.
        dial: from an address to a connection, as dqliteclient's ``dial_func``.
        timeout_s: bounds one try of one request.
        patience_s: bounds all tries while there is no leader.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        dial: DialFunc,
        *,
        timeout_s: float = TIMEOUT_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        for address in addresses:
            parsed_address(address)
        self._addresses = list(addresses)
        self._dial = dial
        self._timeout_s = timeout_s
        self._patience_s = patience_s

    def leader(self) -> RaftMember | None:
        """Who leads now; None when the members that answer know none."""
        try:
            return self._run("find the leader", _leader, patience_s=0.0)
        except NoLeaderError:
            return None

    def list(self) -> list[RaftMember]:
        """All members as the leader knows them, by id.

        Raises:
            NoLeaderError: there is none.
        """
        return self._run("list the members", _members)

    def add(self, member_id: int, address: str, *, role: Role = Role.SPARE) -> None:
        """Add a member, which should be started already; as a spare, then in its role.

        Adding a member that is there under the same address changes only its role.

        Raises:
            ConflictError: its id or its address belongs to another member.
            NoLeaderError: there is none.
        """
        parsed_address(address)
        if not 0 < member_id < 2**63:
            raise InvalidArgumentError(f"{member_id} is no id of a member")

        async def add(client: ClusterClient) -> None:
            for member in await _members(client):
                if (member.member_id, member.address) == (member_id, address):
                    return
                if member.member_id == member_id or member.address == address:
                    raise ConflictError(
                        f"member {member.member_id} has the address {member.address}",
                        next_step="remove it first, or choose another id and address",
                    )
            await client.add_node(member_id, address)

        self._run(f"add the member {address}", add)
        if role is not Role.SPARE:
            self.promote(member_id, role)

    def promote(self, member_id: int, role: Role) -> None:
        """Give a member a role, up or down; waits until a new voter has received the database.

        Raises:
            NotFoundError: there is no such member.
            NoLeaderError: there is none.
        """

        async def assign(client: ClusterClient) -> None:
            member = await _member(client, member_id)
            if member.role is not role:
                await client.assign_role(member_id, _NODE_ROLES[role])

        what = f"make member {member_id} a {role}"
        self._run(what, assign, timeout_s=CATCH_UP_S)

    def remove(self, member_id: int) -> None:
        """Remove a member; leadership is taken from it first. One that is not there is no error.

        Raises:
            FailedPreconditionError: it is the only voter.
            NoLeaderError: there is none.
        """

        async def remove(client: ClusterClient) -> None:
            members = await _members(client)
            if member_id not in {member.member_id for member in members}:
                return
            leader = await _leader(client)
            if leader.member_id == member_id:
                voters = [m for m in members if m.role is Role.VOTER and m.member_id != member_id]
                if not voters:
                    raise FailedPreconditionError(
                        f"member {member_id} is the only voter",
                        next_step="make another member a voter first",
                    )
                await client.transfer_leadership(voters[0].member_id)
                raise ClusterError("leadership is being transferred")
            await client.remove_node(member_id)

        self._run(f"remove member {member_id}", remove)

    def transfer(self, member_id: int) -> None:
        """Make a voter the leader; returns when it is.

        Raises:
            NotFoundError: there is no such member.
            FailedPreconditionError: it is no voter.
            NoLeaderError: it did not become the leader.
        """

        async def transfer(client: ClusterClient) -> None:
            member = await _member(client, member_id)
            if member.role is not Role.VOTER:
                raise FailedPreconditionError(
                    f"member {member_id} is a {member.role}, not a voter",
                    next_step="make it a voter first",
                )
            leader = await _leader(client)
            if leader.member_id != member_id:
                await client.transfer_leadership(member_id)
                raise ClusterError("leadership is being transferred")

        self._run(f"make member {member_id} the leader", transfer)

    def weight(self, address: str) -> int:
        """The weight of one member, by address; 0 until it is set."""

        async def describe(client: ClusterClient) -> int:
            return (await client.describe(address=address)).weight

        return self._run(f"describe the member {address}", describe)

    def failure_domain(self, address: str) -> int:
        """The failure domain of one member, by address."""

        async def describe(client: ClusterClient) -> int:
            return (await client.describe(address=address)).failure_domain

        return self._run(f"describe the member {address}", describe)

    def set_weight(self, address: str, weight: int) -> None:
        """Set one member's weight; it is not kept over its restart."""

        async def set_weight(client: ClusterClient) -> None:
            await client.set_weight(weight, address=address)

        self._run(f"set the weight of {address}", set_weight)

    def dump(self, database: str) -> dict[str, bytes]:
        """The files of a database as the leader has them: the main one and its WAL.

        They hold transactions that were written and not yet agreed on, too.
        """

        async def dump(client: ClusterClient) -> dict[str, bytes]:
            return await client.dump(database)

        return self._run(f"dump {database}", dump, timeout_s=CATCH_UP_S)

    def _run[T](
        self,
        what: str,
        request: Callable[[ClusterClient], Awaitable[T]],
        *,
        timeout_s: float | None = None,
        patience_s: float | None = None,
    ) -> T:
        """Try until it succeeds, fails for good, or ``patience_s`` has passed.

        A request must find out by itself whether an earlier try has had its effect.
        """
        timeout_s = timeout_s or self._timeout_s
        patience_s = self._patience_s if patience_s is None else patience_s
        deadline = time.monotonic() + patience_s
        while True:
            failure: TidegateError
            try:
                return run(self._attempt(request, timeout_s))
            except (ClusterError, DqliteConnectionError, ProtocolError, OSError) as error:
                failure = NoLeaderError(
                    f"nobody could {what}: {error}",
                    next_step="see which members are up; a majority of the voters must be",
                )
            except OperationalError as error:
                failure = self._failure(what, error)
            except DriverError as error:
                raise DqliteError(f"the members did not {what}: {error}") from error
            if not failure.retryable or time.monotonic() > deadline:
                raise failure
            time.sleep(_PAUSE_S)

    async def _attempt[T](
        self, request: Callable[[ClusterClient], Awaitable[T]], timeout_s: float
    ) -> T:
        client = ClusterClient.from_addresses(
            self._addresses,
            timeout=timeout_s,
            dial_timeout=min(timeout_s, DIAL_TIMEOUT_S),
            attempt_timeout=min(timeout_s, TIMEOUT_S),
            dial_func=self._dial,
        )
        return await request(client)

    @staticmethod
    def _failure(what: str, error: OperationalError) -> TidegateError:
        text = str(error)
        if error.code in LEADER_ERROR_CODES or any(part in text for part in _LEADER_TEXTS):
            return NoLeaderError(
                f"the leader stepped down before it could {what}",
                next_step="try again; if it lasts, look at the network between the members",
            )
        if any(part in text for part in _BUSY_TEXTS):
            return ConflictError(
                f"the leader could not {what} yet: {text}", next_step="try again in a moment"
            )
        return DqliteError(f"the leader did not {what}: {text}", code=error.code)


async def _leader(client: ClusterClient) -> RaftMember:
    info = await client.leader_info()
    if info is None:
        raise ClusterError("no member leads")
    return RaftMember(info.node_id, info.address, Role.VOTER)


async def _members(client: ClusterClient) -> list[RaftMember]:
    nodes = await client.cluster_info()
    return sorted(RaftMember(node.node_id, node.address, _ROLES[node.role]) for node in nodes)


async def _member(client: ClusterClient, member_id: int) -> RaftMember:
    for member in await _members(client):
        if member.member_id == member_id:
            return member
    raise NotFoundError(
        f"the cluster database has no member {member_id}", next_step="list the members"
    )
