"""Kinds of objects that a schema copy makes beside tables, and how to ask whether one exists.

The names of kinds are pg_dump's; identities are those of ``pg_identify_object``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from psycopg import sql

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.rows import TupleRow

#: Kind of item, and a function of the catalogue that finds one by its identity.
_LOOK_UP: Final = {
    "SCHEMA": "to_regnamespace",
    "TYPE": "to_regtype",
    "DOMAIN": "to_regtype",
    "COLLATION": "to_regcollation",
    "SEQUENCE": "to_regclass",
    "VIEW": "to_regclass",
}

#: Kinds whose identity names types: catalogue, column of the schema. Their look-up functions raise
#: an error for a type that does not exist (up to PostgreSQL 15), so the identities are compared.
_WITH_TYPES: Final = {
    "FUNCTION": ("pg_proc", "pronamespace"),
    "PROCEDURE": ("pg_proc", "pronamespace"),
    "AGGREGATE": ("pg_proc", "pronamespace"),
    "OPERATOR": ("pg_operator", "oprnamespace"),
}

#: Kinds for which there is no such function: catalogue, column of the name, of the schema.
_CATALOGUES: Final = {
    "TEXT SEARCH CONFIGURATION": ("pg_ts_config", "cfgname", "cfgnamespace"),
    "TEXT SEARCH DICTIONARY": ("pg_ts_dict", "dictname", "dictnamespace"),
}

KINDS: Final = frozenset({*_LOOK_UP, *_WITH_TYPES, *_CATALOGUES})
"""Every kind that can be made."""


def exists(connection: Connection[TupleRow], kind: str, identity: str) -> bool:
    """Whether the database has an object of that kind and identity."""
    if kind in _LOOK_UP:
        query = sql.SQL("SELECT {}(%s) IS NOT NULL").format(
            sql.Identifier("pg_catalog", _LOOK_UP[kind])
        )
    elif kind in _WITH_TYPES:
        catalogue, schema = _WITH_TYPES[kind]
        query = sql.SQL(
            "SELECT EXISTS (SELECT FROM pg_catalog.{0} c JOIN pg_catalog.pg_namespace n"
            " ON n.oid = c.{1} AND starts_with(s.identity, quote_ident(n.nspname) || '.')"
            " WHERE (pg_identify_object({2}::regclass, c.oid, 0)).identity = s.identity)"
            " FROM (SELECT %s::text AS identity) AS s"
        ).format(
            sql.Identifier(catalogue),
            sql.Identifier(schema),
            sql.Literal(f"pg_catalog.{catalogue}"),
        )
    else:
        catalogue, name, schema = _CATALOGUES[kind]
        query = sql.SQL(
            "SELECT EXISTS (SELECT FROM pg_catalog.{} c JOIN pg_catalog.pg_namespace n"
            " ON n.oid = c.{} WHERE format('%%I.%%I', n.nspname, c.{}) = %s)"
        ).format(sql.Identifier(catalogue), sql.Identifier(schema), sql.Identifier(name))
    row = connection.execute(query, [identity]).fetchone()
    return row is not None and bool(row[0])
