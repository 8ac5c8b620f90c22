"""What an engine of the cluster database must offer, and what it may lack.

Decides the line between :class:`tidegate.cluster.database.ClusterDatabase`, which knows
transactions, and the engines, which know one server's SQL. All engines promise the same, and one
suite of tests (``tests/cluster/conformance``) holds each of them to it:

* a writing transaction runs as if it were alone: one writer at a time, the next one waits;
* schema changes are part of their transaction;
* a reading transaction sees one state and cannot write;
* after an error nothing was changed, or the error is an ``OutcomeUnknownError``;
* a statement that fails dooms its transaction: catch the error outside of it.

What an engine may lack is a field of :class:`Abilities`. Nothing else may differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from sqlalchemy import Connection, Engine

    from tidegate.errors import TidegateError

WRITES: Final = "tidegate_writes"
"""Execution option of a connection: whether its next transaction writes."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What an engine can do beyond what all can.

    Attributes:
        engine: its name, as in the URL.
        is_shared: nodes on several machines may use one database.
        is_replicated: an acknowledged write can survive the loss of a machine.
    """

    engine: str
    is_shared: bool
    is_replicated: bool


class Store(Protocol):
    """One engine, opened at one place."""

    @property
    def abilities(self) -> Abilities:
        """What it can do."""

    @property
    def place(self) -> str:
        """The engine and where it is, for people and logs; never a secret."""

    @property
    def busy_timeout_s(self) -> float:
        """How long one transaction waits for another writer, or for a server that is away."""

    @property
    def engine(self) -> Engine:
        """The SQLAlchemy engine.

        When a transaction begins on one of its connections, the connection's ``WRITES`` option says
        whether it may write.
        """

    def clock(self, connection: Connection) -> datetime:
        """The database's time now (not that of the transaction's start), aware, in UTC."""

    def copied(self, label: str, is_right: Callable[[Connection], bool]) -> Path | None:
        """Copy the database into a new file beside it, before its schema is updated.

        Args:
            label: what the copy is of, as part of the file's name.
            is_right: whether a copy holds what the label says; asked on the copy itself, because
                the database may have changed since the caller looked at it.

        Returns:
            The file, durable and complete; None when the copy is not right, and on an engine that
            is not one file of this machine.

        Raises:
            ClusterDatabaseError: it could not be copied; nothing is left of it.
        """

    def trace(self) -> object:
        """What is another whenever something was committed, by any process; next to free to read.

        None where only a look at the database itself can tell.
        """

    def is_passing(self, error: Exception) -> bool:
        """Whether a transaction that could not begin may be begun again on another connection."""

    def translated(self, error: Exception, *, committing: bool = False) -> TidegateError:
        """What an error of the driver means.

        Args:
            error: as SQLAlchemy or the driver raised it.
            committing: it was raised by COMMIT.
        """
