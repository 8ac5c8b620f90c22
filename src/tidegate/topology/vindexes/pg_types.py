"""PostgreSQL's types as sharding columns: their names, and the SQL of their raw forms.

Decides which type names mean the same type, and how SQL writes a column's raw form (see
:mod:`tidegate.topology.vindexes.values`). Expressions use built-in functions only, of any supported
server version.
"""

from __future__ import annotations

from typing import Final

INTEGERS: Final = frozenset({"int2", "int4", "int8"})
TEXTS: Final = frozenset({"text", "varchar", "bpchar"})

_NAMES: Final = {
    "smallint": "int2",
    "integer": "int4",
    "int": "int4",
    "bigint": "int8",
    "character varying": "varchar",
    "character": "bpchar",
    "char": "bpchar",
    "boolean": "bool",
    "decimal": "numeric",
    "timestamp without time zone": "timestamp",
    "timestamp with time zone": "timestamptz",
}


def pg_type_name(name: str) -> str:
    """One name for a type: ``character varying(20)`` becomes ``varchar``.

    The quoted ``"char"``, another type, keeps its quotes.
    """
    words, parenthesis, rest = name.strip().partition("(")
    if parenthesis:
        words = f"{words.strip()}{rest.partition(')')[2]}"
    words = " ".join(words.lower().split()).removeprefix("pg_catalog.")
    return _NAMES.get(words, words)


def sql_text(expression: str, type_name: str) -> str | None:
    """SQL for the text reading of a column, as ``bytea``; None where there is none."""
    kind = pg_type_name(type_name)
    if kind in INTEGERS:
        return f"convert_to(({expression})::text, 'UTF8')"
    if kind in TEXTS:
        return f"convert_to(({expression})::text, 'UTF8')"
    if kind == "bytea":
        return f"({expression})"
    if kind == "uuid":
        return f"uuid_send({expression})"
    if kind == "bool":
        return f"convert_to(({expression})::int::text, 'UTF8')"
    return None


def sql_days(expression: str) -> str:
    """SQL for the raw form of a date, infinities included."""
    return (
        f"CASE ({expression}) WHEN 'infinity'::date THEN 2147483647"
        f" WHEN '-infinity'::date THEN -2147483648"
        f" ELSE ({expression}) - '2000-01-01'::date END"
    )
