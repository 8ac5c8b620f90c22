"""Keeps the member rows in the cluster database.

Decides nothing: it reads, and writes by compare-and-swap on ``revision``. It holds the only
statements on this table. Functions that take a connection work inside the caller's transaction;
:class:`MemberStore` opens its own.

Names and addresses are unique among members that were not evicted. Rows of evicted members stay
until they are purged, so that a node that comes back is told, and its id is not given twice.
Heartbeats are written beside the revision and by no other statement: a member that is changed
meanwhile does not lose one, and a heartbeat never undoes a change.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text, func, inspect, select
from sqlalchemy.exc import IntegrityError

from tidegate.cluster.extensions import Extensions
from tidegate.cluster.ledger import Update
from tidegate.cluster.members import Member, MemberState, Role
from tidegate.errors import AlreadyExistsError, ConflictError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Connection, Row

    from tidegate.cluster.database import ClusterDatabase

UPDATES: Final = (
    Update(
        "cluster.members",
        (
            """
            CREATE TABLE member (
                id integer NOT NULL PRIMARY KEY,
                name text NOT NULL,
                address text NOT NULL,
                schema_version integer NOT NULL,
                api_extensions text NOT NULL,
                binary_version text NOT NULL,
                heartbeat_at_ms bigint NOT NULL,
                role text NOT NULL,
                state text NOT NULL,
                pending_at_ms bigint NOT NULL,
                active_at_ms bigint,
                evicted_at_ms bigint,
                fingerprint text NOT NULL,
                revision bigint NOT NULL
            )
            """,
            "CREATE UNIQUE INDEX member_name ON member (name) WHERE state <> 'evicted'",
            "CREATE UNIQUE INDEX member_address ON member (address) WHERE state <> 'evicted'",
        ),
    ),
)
"""What the members add to the ledger of the cluster database."""

_MEMBERS: Final = Table(
    "member",
    MetaData(),
    Column("id", Integer),
    Column("name", Text),
    Column("address", Text),
    Column("schema_version", Integer),
    Column("api_extensions", Text),
    Column("binary_version", Text),
    Column("heartbeat_at_ms", BigInteger),
    Column("role", Text),
    Column("state", Text),
    Column("pending_at_ms", BigInteger),
    Column("active_at_ms", BigInteger),
    Column("evicted_at_ms", BigInteger),
    Column("fingerprint", Text),
    Column("revision", BigInteger),
)


def has_table(connection: Connection) -> bool:
    """Whether the database has come as far as to have members."""
    return inspect(connection).has_table(_MEMBERS.name)


def read(connection: Connection) -> list[Member]:
    """Every row, pending and evicted ones too, by id."""
    return [_member(row) for row in connection.execute(select(_MEMBERS).order_by(_MEMBERS.c.id))]


def insert(
    connection: Connection,
    *,
    name: str,
    address: str,
    schema_version: int,
    extensions: Extensions,
    binary_version: str,
    now: datetime,
    role: Role = Role.SPARE,
    state: MemberState = MemberState.PENDING,
    fingerprint: str = "",
) -> Member:
    """Add a member, pending unless said otherwise.

    Args:
        connection: of an open writing transaction.
        name: by which it is known.
        address: where others reach it.
        schema_version: what its program knows.
        extensions: what its program's API can do.
        binary_version: of its program.
        now: the database's time.
        role: in the replication of the cluster database.
        state: pending or active.
        fingerprint: of its certificate.

    Raises:
        AlreadyExistsError: a member that was not evicted has the name or the address.
    """
    assert state is not MemberState.EVICTED
    taken = [
        member
        for member in read(connection)
        if member.state is not MemberState.EVICTED
        and (member.name == name) | (member.address == address)
    ]
    if taken:
        raise _taken(taken[0], name)
    last = connection.execute(select(func.max(_MEMBERS.c.id))).scalar_one()
    member = Member(
        id=(last or 0) + 1,
        name=name,
        address=address,
        schema_version=schema_version,
        extensions=extensions,
        binary_version=binary_version,
        heartbeat_at=now,
        role=role,
        state=state,
        pending_at=now,
        active_at=now if state is MemberState.ACTIVE else None,
        evicted_at=None,
        fingerprint=fingerprint,
        revision=1,
    )
    values = {"id": member.id, "heartbeat_at_ms": _milliseconds(now), **_values(member)}
    try:
        connection.execute(_MEMBERS.insert().values(values))
    except IntegrityError:
        raise ConflictError(
            f"another member was added while {name} was", next_step="try again"
        ) from None
    return member


def write(connection: Connection, before: Member, after: Member) -> Member:
    """Replace a row that was read, all but its heartbeat; returns it with its new revision.

    Raises:
        ConflictError: somebody changed it meanwhile.
        AlreadyExistsError: another member has the name or the address.
    """
    assert before.id == after.id
    written = replace(after, revision=before.revision + 1)
    unchanged = (_MEMBERS.c.id == before.id) & (_MEMBERS.c.revision == before.revision)
    try:
        count = connection.execute(
            _MEMBERS.update().where(unchanged).values(_values(written))
        ).rowcount
    except IntegrityError:
        raise AlreadyExistsError(
            f"another member has the name {after.name} or the address {after.address}",
            next_step="list the members and choose others",
        ) from None
    if count != 1:
        raise ConflictError(
            f"somebody else changed the member {before.name} meanwhile", next_step="try again"
        )
    return written


def record_versions(
    connection: Connection,
    address: str,
    *,
    schema_version: int,
    extensions: Extensions,
    binary_version: str,
    now: datetime,
) -> int:
    """Note what a member's program knows, and that it lives; returns how many rows that touched.

    It is not compared with anything: only the member itself says what its program is.
    """
    mine = (_MEMBERS.c.address == address) & (_MEMBERS.c.state != MemberState.EVICTED)
    return connection.execute(
        _MEMBERS.update()
        .where(mine)
        .values(
            schema_version=schema_version,
            api_extensions=extensions.to_json(),
            binary_version=binary_version,
            heartbeat_at_ms=_milliseconds(now),
            revision=_MEMBERS.c.revision + 1,
        )
    ).rowcount


def beat(connection: Connection, ids: Iterable[int], now: datetime) -> int:
    """Note that members live; returns how many of them still are active members."""
    wanted = _MEMBERS.c.id.in_(list(ids)) & (_MEMBERS.c.state == MemberState.ACTIVE)
    return connection.execute(
        _MEMBERS.update().where(wanted).values(heartbeat_at_ms=_milliseconds(now))
    ).rowcount


def purge(connection: Connection, member: Member) -> None:
    """Take the row of an evicted member away; a node that comes back is a stranger then.

    Raises:
        ConflictError: somebody changed it meanwhile, or it was not evicted.
    """
    unchanged = (
        (_MEMBERS.c.id == member.id)
        & (_MEMBERS.c.revision == member.revision)
        & (_MEMBERS.c.state == MemberState.EVICTED)
    )
    if connection.execute(_MEMBERS.delete().where(unchanged)).rowcount != 1:
        raise ConflictError(
            f"the member {member.name} was changed meanwhile, or was not evicted",
            next_step="evict it first, then try again",
        )


def forget_all(connection: Connection) -> int:
    """Take every row away: the node that opens the database next is its only member."""
    if not has_table(connection):
        return 0
    return connection.execute(_MEMBERS.delete()).rowcount


def active(members: Sequence[Member]) -> list[Member]:
    """Those that count: for the gate, lists, heartbeats and notices."""
    return [member for member in members if member.is_active]


class MemberStore:
    """The member rows of an open cluster database, one transaction a call."""

    def __init__(self, database: ClusterDatabase) -> None:
        self._database = database

    def all(self) -> list[Member]:
        """Every row, pending and evicted ones too, by id."""
        with self._database.read() as connection:
            return read(connection)

    def active(self) -> list[Member]:
        """The members that count, by id."""
        return active(self.all())

    def by_name(self, name: str) -> Member:
        """The active member of a name.

        Raises:
            NotFoundError: no active member has it.
        """
        for member in self.active():
            if member.name == name:
                return member
        raise NotFoundError(
            f"no member of the cluster has the name {name}", next_step="list the members"
        )

    def by_address(self, address: str) -> Member:
        """The active member at an address.

        Raises:
            NotFoundError: no active member has it.
        """
        for member in self.active():
            if member.address == address:
                return member
        raise NotFoundError(
            f"no member of the cluster has the address {address}", next_step="list the members"
        )

    def pending_by_address(self, address: str) -> Member:
        """The member at an address that was accepted and has not joined yet.

        Raises:
            NotFoundError: there is none.
        """
        for member in self.all():
            if member.state is MemberState.PENDING and member.address == address:
                return member
        raise NotFoundError(
            f"no member is expected to join from the address {address}",
            next_step="accept it first, on a member of the cluster",
        )

    def add(
        self,
        *,
        name: str,
        address: str,
        schema_version: int,
        extensions: Extensions,
        binary_version: str,
        role: Role = Role.SPARE,
        state: MemberState = MemberState.PENDING,
        fingerprint: str = "",
    ) -> Member:
        """Add a member; see :func:`insert`."""
        with self._database.transaction() as connection:
            return insert(
                connection,
                name=name,
                address=address,
                schema_version=schema_version,
                extensions=extensions,
                binary_version=binary_version,
                now=self._database.now(connection),
                role=role,
                state=state,
                fingerprint=fingerprint,
            )

    def write(self, before: Member, after: Member) -> Member:
        """Replace a row that was read; see :func:`write`."""
        with self._database.transaction() as connection:
            return write(connection, before, after)

    def activate(self, member: Member) -> Member:
        """A pending member has joined: it counts from now on.

        Raises:
            ConflictError: it is not pending, or was changed meanwhile.
        """
        if member.state is not MemberState.PENDING:
            raise ConflictError(
                f"the member {member.name} is {member.state}, not pending",
                next_step="list the members",
            )
        with self._database.transaction() as connection:
            now = self._database.now(connection)
            return write(
                connection, member, replace(member, state=MemberState.ACTIVE, active_at=now)
            )

    def evict(self, member: Member) -> Member:
        """A member has left or is thrown out: it counts no more, and its name is free.

        Raises:
            ConflictError: it was changed meanwhile.
        """
        with self._database.transaction() as connection:
            now = self._database.now(connection)
            return write(
                connection, member, replace(member, state=MemberState.EVICTED, evicted_at=now)
            )

    def beat(self, ids: Iterable[int]) -> int:
        """Note that members live, at the database's time; returns how many still are members."""
        with self._database.transaction() as connection:
            return beat(connection, ids, self._database.now(connection))

    def purge(self, member: Member) -> None:
        """Take the row of an evicted member away; see :func:`purge`."""
        with self._database.transaction() as connection:
            purge(connection, member)


def _taken(member: Member, name: str) -> AlreadyExistsError:
    what = f"the name {name}" if member.name == name else f"the address {member.address}"
    return AlreadyExistsError(
        f"{what} belongs to the {member.state} member {member.name}",
        next_step="choose another, or remove that member first",
        name=member.name,
        address=member.address,
        state=member.state,
    )


def _values(member: Member) -> dict[str, Any]:
    """The columns that a compare-and-swap writes: all but the id and the heartbeat."""
    return {
        "name": member.name,
        "address": member.address,
        "schema_version": member.schema_version,
        "api_extensions": member.extensions.to_json(),
        "binary_version": member.binary_version,
        "role": member.role.value,
        "state": member.state.value,
        "pending_at_ms": _milliseconds(member.pending_at),
        "active_at_ms": _milliseconds_or_none(member.active_at),
        "evicted_at_ms": _milliseconds_or_none(member.evicted_at),
        "fingerprint": member.fingerprint,
        "revision": member.revision,
    }


def _member(row: Row[Any]) -> Member:
    return Member(
        id=row.id,
        name=row.name,
        address=row.address,
        schema_version=row.schema_version,
        extensions=Extensions.from_json(row.api_extensions),
        binary_version=row.binary_version,
        heartbeat_at=_time(row.heartbeat_at_ms),
        role=Role(row.role),
        state=MemberState(row.state),
        pending_at=_time(row.pending_at_ms),
        active_at=_time_or_none(row.active_at_ms),
        evicted_at=_time_or_none(row.evicted_at_ms),
        fingerprint=row.fingerprint,
        revision=row.revision,
    )


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _time_or_none(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else _time(milliseconds)


def _milliseconds(time: datetime) -> int:
    return round(time.timestamp() * 1000)


def _milliseconds_or_none(time: datetime | None) -> int | None:
    return None if time is None else _milliseconds(time)
