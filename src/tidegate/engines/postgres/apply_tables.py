"""What the applier knows of one target table, and the statements that follow from it.

The statements are set-wise: changed rows are COPYed into temporary stage tables of the session,
then joined with the table by its key. Stage tables are made when a table first needs them, and
empty themselves at COMMIT: all of the session's, whether they were used or not. Their columns have
the base types of the table's (a domain may forbid the NULL of a column that is not present) and its
collations.

Keys are compared with the equality of the very index that enforces them, by its qualified name:
``search_path`` is bare, and an extension's type would otherwise be compared as something else
(design invariant 9). A *swap column* belongs to another unique or exclusion index, or is an
identity that UPDATE may not set: rows in which one changes are deleted and inserted again
(datapath rule 10). Generated columns never travel (rule 22).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal

from psycopg import sql

from tidegate.errors import FailedPreconditionError, SchemaChangedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    import psycopg

    from tidegate.topology.names import TableName

type Stage = Literal["key", "row"]

#: PostgreSQL's own bound for a table.
COLUMNS_MAX: Final = 1600

_COLUMNS = """
WITH RECURSIVE typed AS (
  SELECT a.attnum, a.attname::text AS name, a.atttypid AS oid, a.atttypmod AS typmod,
         a.attidentity::text AS identity, a.attgenerated <> '' AS generated,
         CASE WHEN a.attcollation <> 0 THEN (SELECT format('%%I.%%I', n.nspname, c.collname)
           FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace
          WHERE c.oid = a.attcollation) END AS coll
    FROM pg_attribute a WHERE a.attrelid = %(table)s AND a.attnum > 0 AND NOT a.attisdropped
), base AS (
  SELECT c.*, t.typtype, t.typbasetype, t.typtypmod FROM typed c JOIN pg_type t ON t.oid = c.oid
  UNION ALL
  SELECT b.attnum, b.name, t.oid, b.typtypmod, b.identity, b.generated, b.coll,
         t.typtype, t.typbasetype, t.typtypmod
    FROM base b JOIN pg_type t ON t.oid = b.typbasetype WHERE b.typtype = 'd'
)
SELECT name, format_type(oid, typmod), identity, generated, coll
  FROM base WHERE typtype <> 'd' ORDER BY attnum
"""

_KEY_OPERATORS = """
SELECT a.attname::text, n.nspname::text, o.oprname::text
  FROM (SELECT i.* FROM pg_index i WHERE i.indrelid = %(table)s AND i.indisunique
           AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
           AND (SELECT array_agg(a.attname::text ORDER BY a.attname::text COLLATE "C")
                  FROM pg_attribute a WHERE a.attrelid = i.indrelid
                   AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])) = %(key)s
         ORDER BY i.indisprimary DESC, i.indexrelid LIMIT 1) AS i
 CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) AS k (attnum, opclass)
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
  JOIN pg_opclass c ON c.oid = k.opclass
  JOIN pg_amop m ON m.amopfamily = c.opcfamily AND m.amopstrategy = 3
   AND m.amoplefttype = c.opcintype AND m.amoprighttype = c.opcintype
  JOIN pg_operator o ON o.oid = m.amopopr
  JOIN pg_namespace n ON n.oid = o.oprnamespace
"""

#: Of a generated column, those it is computed from: they are what arrives and changes.
_UNIQUE_COLUMNS = """
WITH indexed AS (
  SELECT DISTINCT a.attrelid, a.attnum, a.attname, a.attgenerated
    FROM pg_index i
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum > 0
     AND (a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
          OR EXISTS (SELECT FROM pg_depend d
                      WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
                        AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.indrelid
                        AND d.refobjsubid = a.attnum
                        AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL)))
   WHERE i.indrelid = %s AND (i.indisunique OR i.indisexclusion)
)
SELECT attname::text FROM indexed
 UNION
SELECT base.attname::text
  FROM indexed x
  JOIN pg_attrdef e ON e.adrelid = x.attrelid AND e.adnum = x.attnum
  JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = x.attrelid
   AND (d.classid = 'pg_attrdef'::regclass AND d.objid = e.oid
        OR d.classid = 'pg_class'::regclass AND d.objid = x.attrelid AND d.objsubid = x.attnum)
  JOIN pg_attribute base ON base.attrelid = x.attrelid AND base.attnum = d.refobjsubid
 WHERE x.attgenerated <> '' AND base.attgenerated = ''
"""


_ALL_IMMEDIATE = """
SELECT coalesce(bool_and(i.indimmediate), true) FROM pg_index i
 WHERE i.indrelid = %s AND (i.indisunique OR i.indisexclusion)
"""


@dataclass(frozen=True)
class TargetColumn:
    """A column of the target; ``type_name`` is the base type's."""

    name: str
    type_name: str
    identity: str
    generated: bool
    collation: str | None


def arriving_max(keys: int) -> int:
    """How many columns of a table may travel whose key has ``keys``: all must fit into a stage.

    The stage for rows has one column for the group and one for each column of the origin key.
    """
    return COLUMNS_MAX - 1 - keys


def table_oid(conn: psycopg.Connection, table: TableName) -> int:
    """The relation's oid.

    Raises:
        SchemaChangedError: the table is gone.
    """
    row = conn.execute(
        "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s",
        [table.schema, table.name],
    ).fetchone()
    if row is None:
        raise SchemaChangedError(
            f"table {table} does not exist in database {conn.info.dbname}",
            next_step="cancel the workflow and create it again",
            table=str(table),
        )
    return int(row[0])


def unique_columns(conn: psycopg.Connection, table: TableName) -> frozenset[str]:
    """Columns that any unique or exclusion index depends on, the key's included."""
    rows = conn.execute(_UNIQUE_COLUMNS, [table_oid(conn, table)])
    return frozenset(name for (name,) in rows)


@dataclass(frozen=True)
class TargetTable:
    """One table at a target, with the columns that arrive, in the order they arrive."""

    name: TableName
    number: int  # of its stage tables
    columns: tuple[TargetColumn, ...]
    key: tuple[int, ...]
    operators: tuple[tuple[str, str], ...]  # schema and name of each key column's equality
    swap: frozenset[int]
    immediate: bool = True  # no unique or exclusion constraint is deferrable

    @classmethod
    def read(
        cls,
        conn: psycopg.Connection,
        name: TableName,
        number: int,
        *,
        columns: Sequence[str],
        key: Sequence[str],
        unique_at_source: Collection[str] = (),
    ) -> TargetTable:
        """Look the table up at the target.

        Raises:
            SchemaChangedError: the table or a column is missing.
            FailedPreconditionError: no unique index enforces the key.
        """
        oid = table_oid(conn, name)
        found = {row[0]: TargetColumn(*row) for row in conn.execute(_COLUMNS, {"table": oid})}
        _require_columns(name, columns, found.values())
        operators = {
            row[0]: (row[1], row[2])
            for row in conn.execute(_KEY_OPERATORS, {"table": oid, "key": sorted(key)})
        }
        if set(operators) != set(key) or not key:
            raise FailedPreconditionError(
                f"table {name} has no immediate unique index on ({', '.join(key)}) at the target",
                next_step="give the target the same primary key as the source",
                table=str(name),
            )
        arriving = tuple(found[column] for column in columns)
        unique = set(unique_at_source) | unique_columns(conn, name)
        unique |= {c.name for c in arriving if c.identity == "a"}
        return cls(
            name,
            number,
            arriving,
            tuple(columns.index(column) for column in key),
            tuple(operators[column] for column in key),
            frozenset(i for i, c in enumerate(columns) if c in unique and c not in key),
            all(immediate for (immediate,) in conn.execute(_ALL_IMMEDIATE, [oid])),
        )

    @cached_property
    def all(self) -> tuple[int, ...]:
        """All columns."""
        return tuple(range(len(self.columns)))

    @cached_property
    def relation(self) -> sql.Identifier:
        """The table."""
        return sql.Identifier(self.name.schema, self.name.name)

    @cached_property
    def key_stage(self) -> sql.Identifier:
        """Keys of rows to be deleted."""
        return sql.Identifier("pg_temp", f"tidegate_key_{self.number}")

    @cached_property
    def row_stage(self) -> sql.Identifier:
        """Rows to be changed: group number, origin key, columns."""
        return sql.Identifier("pg_temp", f"tidegate_row_{self.number}")

    @cached_property
    def donor_stage(self) -> sql.Identifier:
        """Rows that were deleted to be inserted again: place in the row stage, columns."""
        return sql.Identifier("pg_temp", f"tidegate_donor_{self.number}")

    def _definition(self, index: int, name: str) -> sql.Composed:
        column = self.columns[index]
        parts = [sql.Identifier(name), sql.SQL(column.type_name)]
        if column.collation is not None:
            parts.append(sql.SQL("COLLATE " + column.collation))
        return sql.SQL(" ").join(parts)

    def stage_statements(self, stage: Stage) -> list[sql.Composed]:
        """What makes the stage for keys, or those for rows and their donors."""
        keys = [self._definition(k, f"k{n}") for n, k in enumerate(self.key)]
        origin = [self._definition(k, f"o{n}") for n, k in enumerate(self.key)]
        values = [self._definition(i, f"c{i}") for i in range(len(self.columns))]
        wanted: list[tuple[sql.Identifier, list[sql.Composed | sql.SQL]]] = [
            (self.key_stage, [*keys])
        ]
        if stage == "row":
            wanted = [
                (self.row_stage, [sql.SQL("g int DEFAULT 1"), *origin, *values]),
                (self.donor_stage, [sql.SQL("at tid"), *values]),
            ]
        return [
            sql.SQL("CREATE TEMPORARY TABLE {} ({}) ON COMMIT DELETE ROWS").format(
                stage, sql.SQL(", ").join(definitions)
            )
            for stage, definitions in wanted
        ]

    def names(self, indexes: Iterable[int]) -> sql.Composed:
        """Columns of the table, quoted."""
        return sql.SQL(", ").join(sql.Identifier(self.columns[i].name) for i in indexes)

    def matches(self, prefix: str, stage: str = "s", table: str = "t") -> sql.Composed:
        """The table's key equals the stage's columns of that prefix."""
        return sql.SQL(" AND ").join(
            sql.SQL("{}.{} OPERATOR({}.{}) {}.{}").format(
                sql.Identifier(table),
                sql.Identifier(self.columns[k].name),
                sql.Identifier(schema),
                sql.SQL(operator),
                sql.Identifier(stage),
                sql.Identifier(self.stage_key(prefix, n)),
            )
            for n, (k, (schema, operator)) in enumerate(zip(self.key, self.operators, strict=True))
        )

    def stage_key(self, prefix: str, position: int) -> str:
        """The stage's name of a key column: k0 or o0, or the column itself, c7."""
        return f"c{self.key[position]}" if prefix == "c" else f"{prefix}{position}"

    def key_text(self, prefix: str, stage: str = "s") -> sql.Composed:
        """A staged key as an array of texts."""
        return sql.SQL("ARRAY[{}]").format(
            sql.SQL(", ").join(
                sql.SQL("{}.{}::text").format(
                    sql.Identifier(stage), sql.Identifier(self.stage_key(prefix, n))
                )
                for n in range(len(self.key))
            )
        )

    def unless_taken(self) -> sql.Composable:
        """The clause that passes over rows whose key or unique values another row has.

        A deferrable constraint cannot decide that; with one only the key does.
        """
        if self.immediate:
            return sql.SQL("ON CONFLICT DO NOTHING")
        return sql.SQL("ON CONFLICT ({}) DO NOTHING").format(self.names(self.key))

    def swapped(self, present: Iterable[int]) -> sql.Composed | None:
        """Whether a present swap column changes; ``None`` when none is present."""
        changed = [
            sql.SQL("t.{}::text IS DISTINCT FROM s.{}::text").format(
                sql.Identifier(self.columns[i].name), sql.Identifier(f"c{i}")
            )
            for i in present
            if i in self.swap
        ]
        return sql.SQL("({})").format(sql.SQL(" OR ").join(changed)) if changed else None

    def settable(self, present: Iterable[int]) -> list[int]:
        """Present columns that an update in place sets."""
        keys = set(self.key)
        return [i for i in present if i not in keys and self.columns[i].identity != "a"]


def _require_columns(
    name: TableName, arriving: Sequence[str], there: Collection[TargetColumn]
) -> None:
    fillable = {c.name for c in there if not c.generated}
    if set(arriving) != fillable:
        missing = sorted(set(arriving) - fillable)
        extra = sorted(fillable - set(arriving))
        raise SchemaChangedError(
            f"table {name} does not have the source's columns at the target:"
            f" missing {missing or 'none'}, additional {extra or 'none'}",
            next_step="give both sides the same columns, then start the workflow again",
            table=str(name),
        )
