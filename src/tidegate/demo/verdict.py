"""What the demo checks from outside, by plain SQL, without any of Tidegate's own comparisons."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from psycopg import sql

from tidegate.demo.world import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterable

    import psycopg


@dataclass(frozen=True)
class Fingerprint:
    """Rows of one table and the sum of a hash of each whole row; the order does not matter."""

    rows: int
    hash_sum: Decimal


def fingerprints(connections: Iterable[psycopg.Connection]) -> dict[str, Fingerprint]:
    """The tables' fingerprints over all connections together."""
    totals = {table: Fingerprint(0, Decimal(0)) for table in TABLES}
    for connection in connections:
        for table in TABLES:
            columns = connection.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass"
                " AND attnum > 0 AND NOT attisdropped ORDER BY attname",
                [f"public.{table}"],
            ).fetchall()
            row = connection.execute(
                sql.SQL(
                    "SELECT count(*), coalesce(sum(hashtextextended(ROW({})::text, 0)), 0) FROM {}"
                ).format(
                    sql.SQL(", ").join(sql.Identifier(name) for (name,) in columns),
                    sql.Identifier("public", table),
                )
            ).fetchone()
            assert row is not None
            before = totals[table]
            totals[table] = Fingerprint(before.rows + row[0], before.hash_sum + row[1])
    return totals


@dataclass(frozen=True)
class WriterVerdict:
    """What became of the application's acknowledged transactions."""

    acknowledged: int
    lost: int
    doubled: int
    unbalanced_accounts: int


def judge_writer(
    connections: Iterable[psycopg.Connection], acknowledged: set[str], prefix: str
) -> WriterVerdict:
    """Find every acknowledged transaction exactly once, and every account in balance.

    An account is balanced when ``abalance`` equals the sum of its history: pgbench and the
    application both write the two in one transaction.
    """
    found: dict[str, int] = {}
    unbalanced = 0
    for connection in connections:
        for (mark,) in connection.execute(
            "SELECT rtrim(filler) FROM public.pgbench_history WHERE filler LIKE %s", [f"{prefix}-%"]
        ):
            found[mark] = found.get(mark, 0) + 1
        row = connection.execute(
            "SELECT count(*) FROM public.pgbench_accounts a"
            " LEFT JOIN (SELECT aid, sum(delta) AS moved FROM public.pgbench_history"
            "  GROUP BY aid) h USING (aid) WHERE a.abalance <> coalesce(h.moved, 0)"
        ).fetchone()
        assert row is not None
        unbalanced += row[0]
    return WriterVerdict(
        acknowledged=len(acknowledged),
        lost=sum(1 for mark in acknowledged if mark not in found),
        doubled=sum(count - 1 for count in found.values()),
        unbalanced_accounts=unbalanced,
    )
