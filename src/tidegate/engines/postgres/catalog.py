"""Reads what the tables of a database are, as frozen values, with one set of bulk queries.

Everything that decides about tables (preflight, fence, copy, streams, diff) decides on these
values, so that the catalogue is read once and at one moment. A table's ``fingerprint`` changes
when a stream that carries it could no longer be right: columns, key, replica identity, partition
set. ``relfilenode`` is kept apart: it also changes with a rewrite that leaves the shape alone
(``ALTER TABLE ... TYPE int USING v * 100`` arrives in the log as a relation message and nothing
else, datapath rule 13).

It must not change anything, and it relies on the session's ``search_path`` being ``pg_catalog``,
so that every name it reports is qualified.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tidegate.engines.postgres import catalog_queries as queries
from tidegate.errors import NotFoundError
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.catalog_queries import Part

#: Where Tidegate keeps its own objects in every shard.
OWN_SCHEMA = "_tidegate"


@dataclass(frozen=True)
class Column:
    """One live column; ``attnum`` is the catalogue's, with holes where columns were dropped."""

    name: str
    attnum: int
    type_oid: int
    type_name: str  # as format_type prints it, with its modifier, qualified outside pg_catalog
    type_schema: str
    type_kind: str  # b base, c composite, d domain, e enum, m multirange, r range
    typmod: int
    not_null: bool
    identity: str  # '' none, a always, d by default
    generated: str  # '' none, s stored, v virtual
    default: str | None
    collation: str | None  # qualified and quoted; pg_catalog."default" is the database's
    collation_deterministic: bool
    has_send: bool  # the type, or the element of an array, has a binary output function
    storage: str  # p plain, e external, m main, x extended


@dataclass(frozen=True)
class Constraint:
    """A primary key, unique or exclusion constraint (kind p, u, x)."""

    name: str
    kind: str
    columns: tuple[str, ...]
    deferrable: bool
    validated: bool
    ddl: str


@dataclass(frozen=True)
class Index:
    """One index; ``constraint`` names the constraint it carries."""

    name: str
    oid: int
    unique: bool
    valid: bool
    immediate: bool
    constraint: str | None
    columns: tuple[str, ...]  # key columns; an expression appears as ''
    predicate: str | None
    nulls_not_distinct: bool
    access_method: str
    ddl: str
    comment: str | None

    @property
    def is_constraint(self) -> bool:
        """It was made by a constraint and goes with it."""
        return self.constraint is not None


@dataclass(frozen=True)
class ForeignKey:
    """A foreign key of ``table`` to ``referenced``; actions: a nothing, r restrict, c, n, d."""

    name: str
    table: TableName
    columns: tuple[str, ...]
    referenced: TableName
    referenced_columns: tuple[str, ...]
    on_delete: str
    on_update: str
    deferrable: bool
    validated: bool
    ddl: str


@dataclass(frozen=True)
class Check:
    """A check constraint."""

    name: str
    validated: bool
    ddl: str


@dataclass(frozen=True)
class Trigger:
    """A trigger people made, or one of our fences (``own``)."""

    name: str
    enabled: str  # O origin, D disabled, R replica, A always
    function: str
    own: bool
    ddl: str


@dataclass(frozen=True)
class OwnedSequence:
    """A sequence that fills a column: ``owned`` by it, its ``identity``, or only ``used`` by it."""

    name: TableName
    oid: int
    column: str
    kind: str


@dataclass(frozen=True)
class Table:
    """One relation as the catalogue has it."""

    oid: int
    name: TableName
    kind: str  # r ordinary, p partitioned, v view, m materialised view, f foreign
    persistence: str  # p permanent, u unlogged, t temporary
    columns: tuple[Column, ...]
    constraints: tuple[Constraint, ...]
    indexes: tuple[Index, ...]
    foreign_keys: tuple[ForeignKey, ...]
    referenced_by: tuple[ForeignKey, ...]
    checks: tuple[Check, ...]
    triggers: tuple[Trigger, ...]
    sequences: tuple[OwnedSequence, ...]
    replica_identity: str  # default, nothing, full, index
    replica_identity_columns: tuple[str, ...]
    row_security: bool
    force_row_security: bool
    is_partition: bool
    parents: tuple[TableName, ...]
    children: tuple[TableName, ...]
    rules: tuple[str, ...]
    subscribed: bool  # a native subscription writes into it
    extension: str | None
    owner: str
    acl: tuple[str, ...]
    comment: str | None
    access_method: str | None
    tablespace: str | None
    est_rows: int
    bytes: int
    relfilenode: int

    @property
    def partitioned(self) -> bool:
        """It is the root or an inner node of a partition tree."""
        return self.kind == "p"

    @property
    def primary_key(self) -> tuple[str, ...]:
        """Columns of the primary key, in key order; empty without one."""
        return next((c.columns for c in self.constraints if c.kind == "p"), ())

    @property
    def primary_key_deferrable(self) -> bool:
        """The primary key cannot serve as replica identity or as target of ON CONFLICT."""
        return any(c.kind == "p" and c.deferrable for c in self.constraints)

    @property
    def copied_columns(self) -> tuple[Column, ...]:
        """The columns that travel: all but the generated ones (datapath rule 22)."""
        return tuple(c for c in self.columns if not c.generated)

    @property
    def fingerprint(self) -> str:
        """Stable hash of what a stream relies on; see the module's docstring."""
        facts = [
            self.oid,
            self.kind,
            self.persistence,
            self.is_partition,
            [str(n) for n in (*self.parents, "/", *self.children)],
            list(self.primary_key),
            self.replica_identity,
            list(self.replica_identity_columns),
            [
                [c.attnum, c.name, c.type_oid, c.type_name, c.not_null, c.generated, c.collation]
                for c in self.columns
            ],
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def column(self, name: str) -> Column:
        """The column of that name.

        Raises:
            NotFoundError: the table has no such column.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise NotFoundError(
            f"table {self.name} has no column {name!r}",
            next_step=f"its columns are {', '.join(c.name for c in self.columns)}",
        )


def key_columns(table: Table) -> tuple[str, ...]:
    """Columns that identify one row at once: the primary key, else the replica identity index.

    Empty when there is none; a deferrable key is none (two rows may share it for a while).
    """
    if table.primary_key and not table.primary_key_deferrable:
        return table.primary_key
    return table.replica_identity_columns


def read_tables(
    connection: Connection[TupleRow],
    names: Iterable[TableName] | None = None,
    *,
    parts: Collection[Part] | None = None,
) -> dict[TableName, Table]:
    """The named relations, or all tables people made; names that do not exist are left out.

    ``parts``: read nothing but these, a query each; what is left out is empty in the result, and
    the caller does not look at it. None: all of them.

    Without ``names``: ordinary and partitioned tables outside the system's and Tidegate's schemas
    that belong to no extension. With names also views and foreign tables, so that a caller can
    refuse them by what they are.
    """
    wanted = None if names is None else sorted(set(names))
    if wanted is None:
        rows = connection.execute(queries.ALL_RELATIONS, [OWN_SCHEMA]).fetchall()
    else:
        rows = connection.execute(
            queries.NAMED_RELATIONS, [[n.schema for n in wanted], [n.name for n in wanted]]
        ).fetchall()
    oids = [row[0] for row in rows]
    by_part = {
        part: _by_table(connection, query, oids if parts is None or part in parts else [])
        for part, query in queries.PARTS_OF_TABLES.items()
    }
    tables = [_table(row, {part: found[row[0]] for part, found in by_part.items()}) for row in rows]
    return {table.name: table for table in sorted(tables, key=lambda t: t.name)}


def require_tables(
    connection: Connection[TupleRow],
    names: Iterable[TableName],
    *,
    parts: Collection[Part] | None = None,
) -> dict[TableName, Table]:
    """As :func:`read_tables`, but every name must exist.

    Raises:
        NotFoundError: names all that do not.
    """
    wanted = set(names)
    found = read_tables(connection, wanted, parts=parts)
    missing = sorted(wanted - set(found))
    if missing:
        raise NotFoundError(
            f"no such table in database {connection.info.dbname}:"
            f" {', '.join(str(n) for n in missing)}",
            next_step="check the names; a table outside schema public is written schema.table",
            tables=[str(n) for n in missing],
        )
    return found


def _by_table(
    connection: Connection[TupleRow], query: str, oids: list[int]
) -> defaultdict[int, list[tuple[Any, ...]]]:
    """Rows of one bulk query, grouped by their first column."""
    grouped: defaultdict[int, list[tuple[Any, ...]]] = defaultdict(list)
    if oids:
        for row in connection.execute(query, {"oids": oids}):
            grouped[row[0]].append(row[1:])
    return grouped


def _table(row: tuple[Any, ...], parts: Mapping[str, list[tuple[Any, ...]]]) -> Table:
    (oid, schema, name, kind, persistence, identity, identity_columns, *rest) = row
    (security, forced, is_partition, rules, subscribed, extension, owner, acl, *rest) = rest
    (comment, access_method, tablespace, est_rows, size, relfilenode) = rest
    keys = [_foreign_key(r) for r in parts["foreign_keys"]]
    own = TableName(schema, name)
    inheritance = parts["inheritance"]
    return Table(
        oid=oid,
        name=own,
        kind=kind,
        persistence=persistence,
        columns=tuple(Column(*r) for r in parts["columns"]),
        constraints=tuple(Constraint(r[0], r[1], tuple(r[2]), *r[3:]) for r in parts["keys"]),
        indexes=tuple(Index(*(*r[:6], tuple(r[6]), *r[7:])) for r in parts["indexes"]),
        foreign_keys=tuple(k for k, outgoing in keys if outgoing),
        referenced_by=tuple(k for k, outgoing in keys if not outgoing),
        checks=tuple(Check(*r) for r in parts["checks"]),
        triggers=tuple(Trigger(*r) for r in parts["triggers"]),
        sequences=tuple(OwnedSequence(TableName(r[0], r[1]), *r[2:]) for r in parts["sequences"]),
        replica_identity=identity,
        replica_identity_columns=tuple(identity_columns),
        row_security=security,
        force_row_security=forced,
        is_partition=is_partition,
        parents=tuple(TableName(r[1], r[2]) for r in inheritance if r[0] == "parent"),
        children=tuple(TableName(r[1], r[2]) for r in inheritance if r[0] == "child"),
        rules=tuple(rules),
        subscribed=subscribed,
        extension=extension,
        owner=owner,
        acl=tuple(acl),
        comment=comment,
        access_method=access_method,
        tablespace=tablespace,
        est_rows=est_rows,
        bytes=size,
        relfilenode=relfilenode,
    )


def _foreign_key(row: tuple[Any, ...]) -> tuple[ForeignKey, bool]:
    """A foreign key, and whether it starts at the table it was found for."""
    (outgoing, name, schema, table, columns, to_schema, to_table, to_columns, *rest) = row
    key = ForeignKey(
        name,
        TableName(schema, table),
        tuple(columns),
        TableName(to_schema, to_table),
        tuple(to_columns),
        *rest,
    )
    return key, outgoing
