"""Tells the rows of one source shard from those of others in a table that several shards feed.

A row's *home* is the source shard whose range holds its keyspace id by the source's vindex. Decides
how homes are found: by a condition where the database can compute the vindex, else by reading the
sharding columns and mapping them here. :func:`delete_own` removes all rows of one home, some blocks
at a time, in the caller's transaction, so that it commits with the position of the TRUNCATE it
stands for (datapath rule 13). Memory is bounded by the rows of :data:`BLOCKS` blocks.

Rows are deleted by ``ctid``. That is safe although others write to the table: nobody else changes
the rows of this source, and no row of it can come while its own stream is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from psycopg import sql

from tidegate.engines.postgres.distribute import RowDistributor
from tidegate.engines.postgres.split import plan_routing, refusal
from tidegate.errors import DivergenceError, ShardKeyError
from tidegate.topology.keyrange import sql_in_key_range

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import psycopg

    from tidegate.engines.postgres.split import Routing
    from tidegate.topology.keyrange import KeyRange
    from tidegate.topology.names import TableName

BLOCKS: Final = 256


@dataclass(frozen=True)
class OwnRows:
    """The rows of one source shard: those whose keyspace id lies in its range."""

    routing: Routing

    @property
    def key_range(self) -> KeyRange:
        """The source shard's."""
        return self.routing.ranges[0]

    @property
    def condition(self) -> sql.Composable | None:
        """As SQL; None where only Python can compute the vindex."""
        if self.routing.keyspace_id is None:
            return None
        return sql.SQL(sql_in_key_range(f"({self.routing.keyspace_id})", self.key_range))

    def are_own(self, raws: Sequence[Sequence[bytes | None]]) -> list[bool]:
        """Which rows are this source's, by their :meth:`Routing.sent_values`.

        Raises:
            ShardKeyError: a row cannot be mapped, so its home is unknown.
        """
        assert self.routing.vindex is not None
        values = RowDistributor(self.routing, "binary", (0,)).decoded(raws)
        try:
            ids = self.routing.vindex.map_many(values)
        except ShardKeyError as error:
            raise refusal(self.routing, str(raws[int(error.details["index"])])) from None
        contains = self.key_range.contains
        return [contains(keyspace_id) for keyspace_id in ids]


#: What the statements of the applier call the table.
ALIAS: Final = "t"


def own_rows(
    target: psycopg.Connection,
    table: TableName,
    key: Sequence[str],
    source_shard: str,
    *,
    shard_columns: Sequence[str],
    vindex_type: str,
    vindex_params: Mapping[str, str],
) -> OwnRows:
    """How to find the rows of a source shard in a table of the target.

    Raises:
        ShardKeyError: the table lacks a sharding column.
    """
    return OwnRows(
        plan_routing(
            target,
            table,
            key,
            {0: source_shard},
            shard_columns=shard_columns,
            vindex_type=vindex_type,
            vindex_params=vindex_params,
            alias=ALIAS,
        )
    )


def delete_own(conn: psycopg.Connection, relation: sql.Composable, own: OwnRows) -> int:
    """Delete the rows of one source shard, in the transaction that is open; says how many.

    Raises:
        ShardKeyError: a row cannot be mapped, so nobody can tell whose it is.
        DivergenceError: somebody else deletes or changes the same rows.
    """
    if own.condition is not None:
        query = sql.SQL("DELETE FROM ONLY {} AS t WHERE {}").format(relation, own.condition)
        return conn.execute(query).rowcount
    row = conn.execute(
        sql.SQL(
            "SELECT pg_relation_size({}::regclass) / current_setting('block_size')::bigint"
        ).format(sql.Literal(relation.as_string(conn)))
    ).fetchone()
    assert row is not None
    deleted = 0
    for begin in range(0, row[0], BLOCKS):
        deleted += _delete_between(conn, relation, own, begin, begin + BLOCKS)
    return deleted


def _delete_between(
    conn: psycopg.Connection, relation: sql.Composable, own: OwnRows, begin: int, end: int
) -> int:
    found = conn.execute(
        sql.SQL(
            "SELECT t.ctid::text, {} FROM ONLY {} AS t WHERE t.ctid >= {}::tid AND t.ctid < {}::tid"
        ).format(
            own.routing.sent_values(),
            relation,
            sql.Literal(f"({begin},0)"),
            sql.Literal(f"({end},0)"),
        )
    ).fetchall()
    owned = own.are_own([row[1] for row in found])
    mine = [row for row, is_own in zip(found, owned, strict=True) if is_own]
    if not mine:
        return 0
    deleted = conn.execute(
        sql.SQL("DELETE FROM ONLY {} WHERE ctid = ANY (%s::tid[])").format(relation),
        [[row[0] for row in mine]],
    ).rowcount
    if deleted != len(mine):
        raise DivergenceError(
            f"table {own.routing.table} was changed by somebody else while the rows of a truncated"
            f" source were removed: {deleted} of {len(mine)} rows were still there",
            next_step="find out who else writes to the target, then start the workflow again",
            table=str(own.routing.table),
        )
    return deleted
