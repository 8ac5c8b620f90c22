"""Looks for rows of one source shard that another one has as well, or should have.

Reads some rows of a table, all of them where there are few, with the values of one unique index and
of the sharding columns; and looks values up in another database, by the index. It decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from psycopg import sql

from tidegate.engines.postgres.bounds import table_identifier

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

    from tidegate.engines.postgres.split import Routing
    from tidegate.topology.names import TableName

#: A table of more rows is sampled.
ROWS_MAX: Final = 20_000

type Values = tuple[str, ...]
type Sent = list[bytes | None]


@dataclass(frozen=True)
class Sample:
    """Rows as (values of the index, sharding columns in binary).

    Attributes:
        whole: they are all rows that the index can compare.
    """

    rows: tuple[tuple[Values, Sent], ...]
    whole: bool


def read(
    conn: Connection[TupleRow],
    table: TableName,
    columns: Sequence[str],
    routing: Routing,
    *,
    est_rows: int,
) -> Sample:
    """Some rows of a table, or all; rows with a NULL among ``columns`` are left out."""
    rows = conn.execute(_query(table, columns, routing, sql.SQL("")), [ROWS_MAX + 1]).fetchall()
    if len(rows) <= ROWS_MAX:
        return Sample(_as_rows(rows), whole=True)
    percent = min(100.0, 100.0 * ROWS_MAX / max(est_rows, ROWS_MAX))
    sampled = sql.SQL("TABLESAMPLE SYSTEM ({})").format(sql.Literal(percent))
    rows = conn.execute(_query(table, columns, routing, sampled), [ROWS_MAX]).fetchall()
    return Sample(_as_rows(rows), whole=False)


def look_up(
    conn: Connection[TupleRow],
    table: TableName,
    columns: Sequence[tuple[str, str]],
    routing: Routing,
    wanted: Iterable[Values],
) -> tuple[tuple[Values, Sent], ...]:
    """The rows that have some of these values; ``columns`` are names with their types."""
    rows = list(wanted)
    names = [sql.Identifier(f"v{at}") for at in range(len(columns))]
    query = sql.SQL(
        "SELECT {} FROM ONLY {} AS t WHERE ({}) IN (SELECT {} FROM unnest({}) AS u ({}))"
    )
    arrays = sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(columns))
    casts = [
        sql.SQL("{}::{}").format(name, sql.SQL(type_name))
        for name, (_, type_name) in zip(names, columns, strict=True)
    ]
    found = conn.execute(
        query.format(
            _selected([name for name, _ in columns], routing),
            table_identifier(table),
            sql.SQL(", ").join(sql.Identifier("t", name) for name, _ in columns),
            sql.SQL(", ").join(casts),
            arrays,
            sql.SQL(", ").join(names),
        ),
        [[values[at] for values in rows] for at in range(len(columns))],
    )
    return _as_rows(found.fetchall())


def _query(
    table: TableName, columns: Sequence[str], routing: Routing, sampled: sql.Composable
) -> sql.Composed:
    return sql.SQL("SELECT {} FROM ONLY {} AS t {} WHERE {} LIMIT %s").format(
        _selected(columns, routing),
        table_identifier(table),
        sampled,
        sql.SQL(" AND ").join(
            sql.SQL("{} IS NOT NULL").format(sql.Identifier("t", name)) for name in columns
        ),
    )


def _selected(columns: Sequence[str], routing: Routing) -> sql.Composed:
    texts = [sql.SQL("{}::text").format(sql.Identifier("t", name)) for name in columns]
    return sql.SQL("ARRAY[{}], {}").format(sql.SQL(", ").join(texts), routing.sent_values())


def _as_rows(rows: Sequence[TupleRow]) -> tuple[tuple[Values, Sent], ...]:
    return tuple((tuple(values), list(sent)) for values, sent in rows)
