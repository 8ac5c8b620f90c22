"""The version table of a tenant: how it is made, brought up to date, read and written.

A row says that a source made a version in this tenant: source, version, and the hash of what was
run. Several sources may share the table; the rows of one are never taken for another's. ``begun``
is null once the version is complete. For a file that runs outside a transaction it is the number
of the statement that was begun last, or the negative of it when that failed, so that an
interruption can be told from success.

Tables made before versions carried their source are brought up to date in place, inside the
tenant's transaction. Their rows have the source ``''`` until their owner takes them over. It must
not decide whose rows they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Sequence

UNFINISHED: Final = "begun "
"""Before the hash of a version that is not complete."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One version that is to be recorded."""

    id: str
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Statements:
    """The statements on one version table; none of them has a placeholder."""

    read: str
    make: str
    renew: str


def table_of(schema: str, name: str) -> sql.Identifier:
    """The table's name, qualified."""
    return sql.Identifier(schema, name)


def statements(schema: str, name: str) -> Statements:
    """What is sent to read the table, to make it, and to bring an old one up to date."""
    table = table_of(schema, name)
    read = sql.SQL("SELECT source, version, name, sha256, begun FROM {}").format(table)
    make = sql.SQL(
        "CREATE TABLE IF NOT EXISTS {} (version text NOT NULL, name text NOT NULL,"
        " sha256 text NOT NULL,"
        " applied_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),"
        " source text NOT NULL DEFAULT '', begun integer, PRIMARY KEY (source, version))"
    ).format(table)
    body = sql.SQL(
        "DECLARE named pg_catalog.name; ours CONSTANT pg_catalog.regclass := {regclass}; BEGIN"
        " IF (SELECT pg_catalog.array_agg(attname::text ORDER BY attname)"
        " FROM pg_catalog.pg_attribute WHERE attrelid = ours AND attnum > 0 AND NOT attisdropped)"
        " <> '{{applied_at,name,sha256,version}}' THEN"
        " RAISE EXCEPTION '% is a table of somebody else, not one of versions', ours; END IF;"
        " SELECT conname INTO STRICT named FROM pg_catalog.pg_constraint"
        " WHERE conrelid = ours AND contype = 'p';"
        " ALTER TABLE {table} ADD COLUMN source text NOT NULL DEFAULT '',"
        " ADD COLUMN begun integer;"
        " EXECUTE pg_catalog.format({alter}, named); END"
    ).format(
        regclass=sql.Literal(table.as_string()),
        table=table,
        alter=sql.Literal(
            f"ALTER TABLE {table.as_string().replace('%', '%%')}"
            " DROP CONSTRAINT %I, ADD PRIMARY KEY (source, version)"
        ),
    )
    renew = sql.SQL("DO {}").format(sql.Literal(body.as_string()))
    return Statements(read.as_string(), make.as_string(), renew.as_string())


def recording(schema: str, name: str, source: str, versions: Sequence[Recorded]) -> str:
    """The statement that records versions of a source as complete.

    It fails if one of them is recorded already: nothing runs twice.
    """
    rows = [
        sql.SQL("({})").format(
            sql.SQL(", ").join(map(sql.Literal, (source, v.id, v.name, v.sha256)))
        )
        for v in versions
    ]
    statement = sql.SQL("INSERT INTO {} (source, version, name, sha256) VALUES {}")
    return statement.format(table_of(schema, name), sql.SQL(", ").join(rows)).as_string()


def amending(
    schema: str,
    name: str,
    source: str,
    *,
    add: Sequence[Recorded] = (),
    rewrite: Sequence[Recorded] = (),
    remove: Sequence[str] = (),
) -> str:
    """The statements that change a source's record of versions, without running any."""
    table, whose = table_of(schema, name), sql.Literal(source)
    found = [recording(schema, name, source, add)] if add else []
    found += [
        sql.SQL(
            "UPDATE {} SET name = {}, sha256 = {}, begun = NULL WHERE source = {} AND version = {}"
        )
        .format(table, sql.Literal(v.name), sql.Literal(v.sha256), whose, sql.Literal(v.id))
        .as_string()
        for v in rewrite
    ]
    if remove:
        listed = sql.SQL(", ").join(map(sql.Literal, remove))
        found.append(
            sql.SQL("DELETE FROM {} WHERE source = {} AND version IN ({})")
            .format(table, whose, listed)
            .as_string()
        )
    return "; ".join(found)


def adopting(schema: str, name: str, source: str, former: Sequence[str], sha256: str = "") -> str:
    """The statement that gives the rows of former sources to a source.

    Args:
        schema: of the tenant.
        name: of its version table.
        source: who gets them.
        former: whose they were; ``''`` for rows that name nobody.
        sha256: fills a hash that is empty.
    """
    statement = sql.SQL(
        "UPDATE {} SET source = {}, sha256 = CASE sha256 WHEN '' THEN {} ELSE sha256 END"
        " WHERE source IN ({})"
    )
    return statement.format(
        table_of(schema, name),
        sql.Literal(source),
        sql.Literal(sha256),
        sql.SQL(", ").join(map(sql.Literal, former)),
    ).as_string()
