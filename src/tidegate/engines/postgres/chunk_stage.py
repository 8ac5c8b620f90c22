"""Puts the rows of a chunk beside those of other source shards that have the same keys.

Chunks of several source shards are read at different moments, so a row that an application moved
from one shard to another may be in a chunk of each. COPY cannot pass over the second one. A chunk
that met it is copied once more into a temporary table, and from there inserted where the place is
free; the keys of rows that were kept out are read again once the stream runs (datapath rule 4).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from psycopg import sql

if TYPE_CHECKING:
    import psycopg

    from tidegate.engines.postgres.apply_tables import TargetTable
    from tidegate.engines.postgres.copy import CopyPlan


class ChunkStage:
    """The temporary table of one target table in one session; made outside of transactions."""

    def __init__(self, conn: psycopg.Connection, table: TargetTable) -> None:
        self._conn, self._table = conn, table
        self._name = sql.Identifier("pg_temp", f"tidegate_chunk_{table.number}")
        columns = [
            sql.SQL("{} AS {}").format(sql.Identifier(column.name), sql.Identifier(f"c{at}"))
            for at, column in enumerate(table.columns)
        ]
        conn.execute(
            sql.SQL(
                "CREATE TEMPORARY TABLE {} ON COMMIT DELETE ROWS AS SELECT {} FROM ONLY {}"
                " WITH NO DATA"
            ).format(self._name, sql.SQL(", ").join(columns), table.relation)
        )

    def plan(self, plan: CopyPlan) -> CopyPlan:
        """The chunk's way into the temporary table."""
        names = {column.name: f"c{at}" for at, column in enumerate(self._table.columns)}
        return replace(plan, into=self._name, into_columns=tuple(names[c] for c in plan.columns))

    def put(self) -> list[list[str]]:
        """Insert what the temporary table holds; returns the keys of rows that were kept out."""
        table = self._table
        staged = sql.SQL(", ").join(sql.Identifier("s", f"c{at}") for at in table.all)
        self._conn.execute(
            sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} AS s {}").format(
                table.relation, table.names(table.all), staged, self._name, table.unless_taken()
            )
        )
        kept_out = self._conn.execute(
            sql.SQL(
                "SELECT {} FROM {} AS s WHERE NOT EXISTS (SELECT FROM ONLY {} AS t"
                " WHERE {} AND t.xmin = pg_current_xact_id()::xid)"
            ).format(table.key_text("c"), self._name, table.relation, table.matches("c"))
        )
        return [row[0] for row in kept_out]
