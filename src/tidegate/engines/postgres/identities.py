"""Gives tables without a primary key an identity to be published by, and takes it back.

Decides which unique index can be one, and how the table's replica identity is set and restored
under locks that keep nobody waiting. A published table must never lose its identity (datapath rule
5): what some publication still publishes keeps what it has.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql

from tidegate.engines.postgres import table_locks
from tidegate.engines.postgres.catalog import key_columns
from tidegate.errors import FailedPreconditionError
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.catalog import Index, Table

LOCK_TIMEOUT_S: Final = 30.0
#: Identities that can be put back without knowing an index.
_WORDS: Final = {
    "default": sql.SQL("DEFAULT"),
    "nothing": sql.SQL("NOTHING"),
    "full": sql.SQL("FULL"),
}


@dataclass(frozen=True)
class Choice:
    """The index that is to identify the rows of a table, and the identity the table had before."""

    table: str
    index: str
    columns: tuple[str, ...]
    before: str

    @property
    def name(self) -> TableName:
        """The table."""
        return TableName.parse(self.table)

    def statement(self) -> str:
        """What sets it, as people run it."""
        return self.composed().as_string()

    def composed(self) -> sql.Composed:
        """What sets it."""
        return _alter(self.name, sql.SQL("USING INDEX {}").format(sql.Identifier(self.index)))

    def undo(self) -> sql.Composed:
        """What puts the identity back that was there before."""
        return _alter(self.name, _WORDS[self.before])


def _alter(table: TableName, identity: sql.Composable) -> sql.Composed:
    return sql.SQL("ALTER TABLE ONLY {} REPLICA IDENTITY {}").format(
        sql.Identifier(table.schema, table.name), identity
    )


def choice(table: Table) -> Choice | None:
    """The best index of a table that has no key; None: it has one, or no index will do.

    An index will do that is unique, valid, checked at once, over all rows and over columns that are
    NOT NULL and not generated. The one with the fewest columns is the best.
    """
    if table.kind != "r" or key_columns(table) or table.replica_identity not in _WORDS:
        return None
    not_null = {c.name for c in table.columns if c.not_null and not c.generated}
    fit = [index for index in table.indexes if _fits(index, not_null)]
    if not fit:
        return None
    best = min(fit, key=lambda index: (len(index.columns), index.name))
    return Choice(str(table.name), best.name, best.columns, table.replica_identity)


def _fits(index: Index, not_null: set[str]) -> bool:
    return (
        index.unique
        and index.valid
        and index.immediate
        and index.predicate is None
        and bool(index.columns)
        and set(index.columns) <= not_null
    )


def set_all(connection: Connection[TupleRow], choices: Sequence[Choice]) -> None:
    """Set the identities, table by table, in short tries; repeatable.

    Raises:
        WaitTimeoutError: a table was not free in time; names who holds it.
        FailedPreconditionError: our role does not own the table; says what its owner has to run.
    """
    for each in choices:
        try:
            _run(connection, each.name, each.composed())
        except psycopg.errors.InsufficientPrivilege as error:
            raise FailedPreconditionError(
                f"the replica identity of table {each.table} cannot be set:"
                f" {error.diag.message_primary}",
                next_step=f"have its owner run: {each.statement()}",
                table=each.table,
            ) from error


def restore_all(connection: Connection[TupleRow], choices: Sequence[Choice]) -> None:
    """Give tables back the identity they had, where ours still stands and nothing publishes them.

    Raises:
        WaitTimeoutError: a table was not free in time; names who holds it.
    """
    for each in choices:
        if _is_ours(connection, each):
            _run(connection, each.name, each.undo())


def _run(connection: Connection[TupleRow], table: TableName, statement: sql.Composed) -> None:
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    table_locks.in_short_tries(connection, table, "ACCESS EXCLUSIVE", [statement], deadline)


def _is_ours(connection: Connection[TupleRow], choice: Choice) -> bool:
    row = connection.execute(
        "SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " JOIN pg_index AS i ON i.indrelid = c.oid JOIN pg_class AS x ON x.oid = i.indexrelid"
        " WHERE n.nspname = %s AND c.relname = %s AND c.relreplident = 'i' AND i.indisreplident"
        " AND x.relname = %s AND NOT EXISTS (SELECT FROM pg_publication_tables AS p"
        "  WHERE p.schemaname = n.nspname AND p.tablename = c.relname)",
        [choice.name.schema, choice.name.name, choice.index],
    ).fetchone()
    return row is not None
