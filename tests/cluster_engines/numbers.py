"""Two small tables for tests of transactions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import Column, Integer, MetaData, Table, select

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tidegate.cluster.database import ClusterDatabase

CREATE: Final = (
    "CREATE TABLE parent (id integer NOT NULL PRIMARY KEY)",
    "CREATE TABLE child (id integer NOT NULL PRIMARY KEY REFERENCES parent (id))",
)
PARENT: Final = Table("parent", MetaData(), Column("id", Integer))
CHILD: Final = Table("child", MetaData(), Column("id", Integer))


def create(database: ClusterDatabase) -> None:
    """Make both tables."""
    with database.transaction() as connection:
        for statement in CREATE:
            connection.exec_driver_sql(statement)


def insert(connection: Connection, number: int) -> None:
    """Add a parent."""
    connection.execute(PARENT.insert().values(id=number))


def parents(database: ClusterDatabase) -> list[int]:
    """All parents, in order."""
    with database.read() as connection:
        return list(connection.execute(select(PARENT.c.id).order_by(PARENT.c.id)).scalars())
