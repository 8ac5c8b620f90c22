"""Programs of several versions over one cluster database, for tests of the gate and the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidegate.cluster import member_store
from tidegate.cluster.cluster import Cluster, NewSchema
from tidegate.cluster.extensions import Extensions
from tidegate.cluster.gate import Versions
from tidegate.cluster.ledger import Update
from tidegate.cluster.members import MemberState, Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.cluster.database import ClusterDatabase
    from tidegate.cluster.members import Member


def updates(count: int) -> tuple[Update, ...]:
    """The first updates of a program: the member rows, then a table each."""
    tables = (
        Update(f"test.u{n}", (f"CREATE TABLE u{n} (id integer NOT NULL PRIMARY KEY)",))
        for n in range(2, count + 1)
    )
    return (*member_store.UPDATES, *tables)[:count]


def extensions(count: int) -> Extensions:
    """The first API extensions of a program."""
    return Extensions.of(f"ext_{n}" for n in range(1, count + 1))


def versions(pair: Sequence[int]) -> Versions:
    """What a program knows, by its two numbers."""
    return Versions(pair[0], extensions(pair[1]))


def program(database: ClusterDatabase, pair: Sequence[int], **options: Any) -> Cluster:
    """A program of a version on an open database."""
    schema = NewSchema(updates(pair[0]))
    return Cluster(extensions(pair[1]), schema, database=database, **options)


def add(
    database: ClusterDatabase,
    name: str,
    address: str,
    pair: Sequence[int],
    state: MemberState = MemberState.ACTIVE,
) -> Member:
    """Another member's row, as its program of a version left it."""
    return member_store.MemberStore(database).add(
        name=name,
        address=address,
        schema_version=pair[0],
        extensions=extensions(pair[1]),
        binary_version="test",
        state=state,
        role=Role.VOTER,
    )


def rows(database: ClusterDatabase) -> dict[str, tuple[int, int]]:
    """What the members' rows say their programs know, by name; evicted ones left out."""
    return {
        member.name: (member.schema_version, member.extensions.count)
        for member in member_store.MemberStore(database).all()
        if member.state is not MemberState.EVICTED
    }
