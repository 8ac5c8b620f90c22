"""Separators come from the database and cut a table into chunks that hold each row once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from psycopg import sql

from tidegate.dataplane.chunks import tile
from tidegate.engines.postgres import bounds
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from fix_databases import Database

pytestmark = pytest.mark.servers

KEYS = {
    "bigint": ("id bigint", "id", "g"),
    "negative": ("id int", "id", "g - 5000"),
    "text": ("id text", "id", "md5(g::text)"),
    "collated": ('id text COLLATE "C"', "id", "chr(65 + g % 26) || g"),
    "quoted": ('"Odd ""name" text', '"Odd ""name"', "'''' || g || '\\'"),
    "uuid": ("id uuid", "id", "md5(g::text)::uuid"),
    "numeric": ("id numeric", "id", "g / 7.0"),
    "timestamp": ("id timestamptz", "id", "now() + g * interval '1 minute'"),
    "bytea": ("id bytea", "id", "decode(md5(g::text), 'hex')"),
    "enum": ("a mood, id int", "a, id", "(ARRAY['sad','ok','happy'])[1 + g % 3]::mood, g"),
    "domain": ("id positive", "id", "g"),
    "composite": ("a text, b int, c uuid", "b, a, c", "'x', g % 10, md5(g::text)::uuid"),
    "unlike": ("id unlike", "id", "'A' || g"),
}

#: A type whose operators live outside pg_catalog and sort otherwise than the text under it.
UNLIKE = """
CREATE EXTENSION citext;
CREATE DOMAIN unlike AS citext;
"""


@pytest.mark.parametrize("kind", KEYS)
def test_chunks_hold_every_row_once(database: Database, kind: str) -> None:
    columns, key, values = KEYS[kind]
    with database.admin() as connection:
        connection.execute("SET search_path = public")
        connection.execute("CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy')")
        connection.execute("CREATE DOMAIN positive AS int CHECK (VALUE > 0)")
        if kind == "unlike":
            connection.execute(UNLIKE)
        connection.execute(f"CREATE TABLE t ({columns}, filler text, PRIMARY KEY ({key}))")
        connection.execute(
            f"INSERT INTO t SELECT {values}, repeat('x', 100) FROM generate_series(1, 10000) g"
        )
        connection.execute("ANALYZE t")
    names = [part.strip().strip('"').replace('""', '"') for part in key.split(",")]
    with database.admin() as connection:
        space = bounds.read_key_space(connection, TableName("public", "t"), names)
        space.use(connection)
        chunks = tile(bounds.separators(connection, space, chunk_bytes=32_768))
        assert len(chunks) > 5
        found = []
        for chunk in chunks:
            query = sql.SQL("SELECT ctid::text FROM ONLY public.t WHERE {}").format(
                bounds.condition(space, chunk.lower, chunk.upper)
            )
            rows = [row[0] for row in connection.execute(query)]
            assert len(rows) < 6_000, "chunks are of comparable size"
            found += rows
        assert len(found) == len(set(found)) == 10_000


def test_a_small_table_is_one_chunk(database: Database) -> None:
    with database.admin() as connection:
        connection.execute("CREATE TABLE public.t (id int PRIMARY KEY)")
        space = bounds.read_key_space(connection, TableName("public", "t"), ["id"])
        assert bounds.separators(connection, space, chunk_bytes=1 << 24) == []


def test_an_order_is_known_only_where_both_sides_must_agree(database: Database) -> None:
    with database.admin() as connection:
        connection.execute(
            "CREATE TYPE public.mood AS ENUM ('sad');"
            'CREATE TABLE public.t (a int, b text, c text COLLATE "C", d public.mood)'
        )
        table = TableName("public", "t")

        def order(*names: str) -> tuple[str, ...] | None:
            return bounds.key_order(connection, bounds.read_key_space(connection, table, names))

        assert order("a", "b") == ("int4", "text UTF8 bytes")
        assert order("b") == order("c")
        assert order("d") is None
