"""What the conformance suite of the cluster database needs from each engine.

An engine joins the suite with a file beside this one and a line in ``fix_cluster.ENGINES``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from sqlalchemy import inspect, text

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from tidegate.cluster.database import ClusterDatabase

type Fault = Literal["lost commit", "cut connection", "full disk", "failover"]


class Engine(ABC):
    """Databases of one engine, for one run of the tests."""

    name: ClassVar[str]

    #: What can be made to happen to it; a test runs on the engines that have the faults it needs.
    faults: ClassVar[frozenset[Fault]] = frozenset()

    @classmethod
    @abstractmethod
    def start(cls) -> Self:
        """Start what the engine needs."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it and remove everything."""

    @abstractmethod
    def fresh_url(self) -> str:
        """The URL of a new, empty database; usable in other processes of this machine."""

    def losing_commits(self, url: str, count: int) -> AbstractContextManager[str]:
        """Another URL of the database; the answers to its first COMMITs get lost.

        The server commits, and the connection is cut before its answer arrives.
        """
        raise NotImplementedError(url, count)

    def through_a_cut(self, url: str) -> AbstractContextManager[Cut]:
        """Another URL of the database, whose connections a test can cut."""
        raise NotImplementedError(url)

    def small_disk(self) -> AbstractContextManager[str]:
        """The URL of a new database that has a few MiB."""
        raise NotImplementedError


class Cut(ABC):
    """Connections that a test can cut."""

    url: str

    @abstractmethod
    def cut(self) -> None:
        """Reset all connections that are open; new ones can be made."""


def contents(database: ClusterDatabase, *, but: tuple[str, ...] = ()) -> dict[str, object]:
    """Everything a database holds, as values that can be compared over engines.

    Args:
        database: to look at.
        but: columns to leave out.
    """
    with database.read() as connection:
        inspector = inspect(connection)
        found: dict[str, object] = {}
        for table in sorted(inspector.get_table_names()):
            columns = [c for c in inspector.get_columns(table) if c["name"] not in but]
            names = ", ".join(column["name"] for column in columns)
            rows = connection.execute(text(f"SELECT {names} FROM {table}"))
            found[table] = {
                "columns": [(column["name"], column["nullable"]) for column in columns],
                "key": inspector.get_pk_constraint(table)["constrained_columns"],
                "unique": sorted(
                    tuple(each["column_names"]) for each in inspector.get_unique_constraints(table)
                ),
                "foreign": sorted(
                    (tuple(each["constrained_columns"]), each["referred_table"])
                    for each in inspector.get_foreign_keys(table)
                ),
                "rows": sorted(map(repr, rows)),
            }
        return found
