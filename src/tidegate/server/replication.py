"""What membership asks of the engine of the cluster database: whom it replicates to, as what.

Only dqlite replicates over the members themselves. With the other engines every method says so by
doing nothing, and :attr:`Replication.has_roles` is False.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tidegate.cluster.members import Role
from tidegate.cluster.membership import VOTERS
from tidegate.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from tidegate.cluster.dqlite.client import DqliteClient


class Replication(Protocol):
    """The members as the engine knows them, by the ids of their rows."""

    @property
    def has_roles(self) -> bool:
        """Whether the engine replicates over the members."""

    def ids(self) -> Collection[int]:
        """Whom it knows."""

    def roles(self) -> Mapping[int, Role]:
        """Whom it knows, as what."""

    def add(self, member_id: int, address: str) -> None:
        """Begin to know a member that is up; one that is known already is no error."""

    def assign(self, member_id: int, role: Role) -> None:
        """Give a member a role."""

    def remove(self, member_id: int) -> None:
        """Forget a member; one that is not known is no error."""


class NoReplication:
    """Of SQLite and PostgreSQL."""

    has_roles = False

    def ids(self) -> Collection[int]:
        """Nobody."""
        return ()

    def roles(self) -> Mapping[int, Role]:
        """Nobody."""
        return {}

    def add(self, member_id: int, address: str) -> None:
        """Nothing is to be done."""

    def assign(self, member_id: int, role: Role) -> None:
        """Nothing is to be done."""

    def remove(self, member_id: int) -> None:
        """Nothing is to be done."""


class DqliteReplication:
    """Of dqlite, asked through one member."""

    has_roles = True

    def __init__(self, client: DqliteClient, my_id: int) -> None:
        self._client = client
        self._my_id = my_id

    def ids(self) -> Collection[int]:
        """Everybody in Raft's configuration."""
        return self.roles()

    def roles(self) -> Mapping[int, Role]:
        """Everybody in Raft's configuration."""
        return {member.member_id: member.role for member in self._client.list()}

    def add(self, member_id: int, address: str) -> None:
        """Add a member as a spare, then as a voter while there are few."""
        roles = self.roles()
        if member_id not in roles:
            self._client.add(member_id, address, role=Role.SPARE)
        if sum(role is Role.VOTER for role in roles.values()) < VOTERS:
            self._client.promote(member_id, Role.VOTER)

    def assign(self, member_id: int, role: Role) -> None:
        """Give a member a role."""
        self._client.promote(member_id, role)

    def remove(self, member_id: int) -> None:
        """Forget a member; one that leads gives leadership up first."""
        leader = self._client.leader()
        if leader is not None and leader.member_id == member_id:
            heirs = [
                member.member_id
                for member in self._client.list()
                if member.role is Role.VOTER and member.member_id != member_id
            ]
            if heirs:
                self._client.transfer(self._my_id if self._my_id in heirs else heirs[0])
        try:
            self._client.remove(member_id)
        except NotFoundError:
            return
