"""The hash of a row sees every column, as part of its row, alike on every version."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

from fix_servers import wanted_majors
from tidegate.engines.postgres import hashing
from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.copy import column_forms
from tidegate.topology.connections import Endpoint
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tidegate.engines.postgres.local import LocalServer

pytestmark = pytest.mark.servers

TABLE = TableName("public", "t")

#: Values of one type that are all different; the second of each pair is what PostgreSQL's own hash
#: takes for the first, or what a careless one would.
VALUES = {
    "int8": ["1", "4294967296", "-1", "-4294967297", "0", "30064771077", "21474836487"],
    "int4": ["0", "1", "-1", "256"],
    "int2": ["0", "1", "-1"],
    "bool": ["false", "true"],
    "oid": ["0", "1", "4294967295"],
    "uuid": ["'00000000-0000-0000-0000-000000000000'", "'00000000-0000-0000-0000-000000000001'"],
    "text": ["''", "'a'", "'A'", "'a '", "repeat('x', 9000)", "repeat('x', 8999) || 'y'"],
    "varchar(9)": ["''", "'a'", "'a '"],
    "name": ["''", "'a'", "'A'"],
    "bytea": [r"''", r"'\x00'", r"'\x0000'"],
    "date": ["'2000-01-01'", "'2000-01-02'", "'infinity'", "'-infinity'"],
    "timestamptz": [
        "'2000-01-01 00:00:00.000001+00'",
        "'2000-01-01 00:00:00+00'::timestamptz + interval '4294.967296 s'",
        "'infinity'",
        "'-infinity'",
    ],
    "timestamp": [
        "'2000-01-01 00:00:00.000001'",
        "'2000-01-01 00:00:00'::timestamp + interval '4294.967296 s'",
    ],
    "time": ["'00:00:00.000001'", "'00:00:00'::time + interval '4294.967296 s'"],
    "pg_lsn": ["'0/1'", "'1/0'"],
    "macaddr": ["'08:00:2b:01:02:03'", "'08:00:2b:01:02:04'"],
    "numeric": ["1", "1.0", "1.00", "'NaN'"],
    "jsonb": ["'1.0'", "'1.00'", "'null'"],
    "int4[]": ["'{1}'", "'[0:0]={1}'", "'{NULL}'"],
    "positive": ["1", "2"],
    "mood": ["'sad'", "'happy'"],
    "pair": ["ROW(1, NULL)", "ROW(NULL, 1)", "ROW(NULL, NULL)"],
}


@pytest.fixture(params=["18", "16"])
def session(
    request: pytest.FixtureRequest,
    source_server: LocalServer,
    old_server: LocalServer,
    new_database: Callable[[LocalServer], str],
) -> Iterator[psycopg.Connection]:
    server = source_server if request.param == "18" else old_server
    with connect(
        Endpoint(server.conninfo(new_database(server)), server.secret), purpose="test"
    ) as s:
        s.execute("CREATE DOMAIN public.positive AS int4 CHECK (VALUE > 0)")
        s.execute("CREATE TYPE public.mood AS ENUM ('sad', 'happy')")
        s.execute("CREATE TYPE public.pair AS (a int, b int)")
        s.execute("SET search_path = pg_catalog, public")
        yield s


def columns_of(session: psycopg.Connection, key: tuple[str, ...] = ("id",)) -> hashing.HashColumns:
    forms = column_forms(session, TABLE)
    columns = hashing.hash_columns(TABLE, forms, forms, key)
    return columns.at(session.info.server_version)


def hashes(session: psycopg.Connection, columns: hashing.HashColumns) -> list[int]:
    query = sql.SQL("SELECT {} FROM public.t ORDER BY id").format(columns.row_hash())
    return [row[0] for row in session.execute(query).fetchall()]


def test_values_that_are_not_identical_hash_apart(session: psycopg.Connection) -> None:
    for name, values in VALUES.items():
        session.execute("DROP TABLE IF EXISTS public.t")
        session.execute(f"CREATE TABLE public.t (id int PRIMARY KEY, v {name})")
        for value in ["NULL", *values]:
            session.execute(f"INSERT INTO public.t VALUES (1, {value}) ON CONFLICT DO NOTHING")
            session.execute("ALTER TABLE public.t DROP CONSTRAINT IF EXISTS t_pkey")
        found = hashes(session, columns_of(session))
        assert None not in found, name
        assert len(set(found)) == len(found) == len(values) + 1, name


def test_a_null_in_another_column_is_another_row(session: psycopg.Connection) -> None:
    session.execute("CREATE TABLE public.t (id int, a text, b text, c int8, d int8, e date)")
    session.execute(
        "INSERT INTO public.t VALUES (1, NULL, '', 0, 0, NULL), (1, '', NULL, 0, 0, NULL),"
        " (1, '', '', NULL, 0, NULL), (1, '', '', 0, NULL, NULL), (1, '', '', 0, 0, NULL)"
    )
    found = hashes(session, columns_of(session))
    assert len(set(found)) == 5


def test_rows_that_exchanged_a_value_have_another_sum(session: psycopg.Connection) -> None:
    session.execute(
        "CREATE TABLE public.t (id int8 PRIMARY KEY, a text, n numeric, at timestamptz)"
    )
    session.execute(
        "INSERT INTO public.t SELECT g, md5(g::text), g / 7.0,"
        " timestamptz '2025-01-01' + g * interval '1 day' FROM generate_series(1, 2000) g"
    )
    columns = columns_of(session)
    seen = hashes(session, columns)
    for column in ("a", "n", "at", "id"):
        others = " ".join(f", {c}" for c in ("id", "a", "n", "at") if c != column)
        # row g has the value of row g + 1 if g is odd, of row g - 1 if it is even
        swapped = session.execute(
            sql.SQL(
                "SELECT {hash} FROM (SELECT n.own, o.{column} {others} FROM"
                " (SELECT *, id AS own FROM public.t) n"
                " JOIN (SELECT id AS other, {column} FROM public.t) o"
                " ON o.other = ((n.own - 1) # 1) + 1) AS t ORDER BY own"
            ).format(
                hash=columns.row_hash(),
                column=sql.Identifier(column),
                others=sql.SQL(others),
            )
        ).fetchall()
        pairs = [
            seen[i] + seen[i + 1] == swapped[i][0] + swapped[i + 1][0] for i in range(0, 2000, 2)
        ]
        assert not any(pairs), column


def test_both_forms_of_hashing_bytes_are_the_same(
    source_server: LocalServer, new_database: Callable[[LocalServer], str]
) -> None:
    server = source_server
    endpoint = Endpoint(server.conninfo(new_database(server)), server.secret)
    with connect(endpoint, purpose="test") as session:
        session.execute("CREATE TABLE public.t (id int8 PRIMARY KEY, b bytea, at timestamptz)")
        session.execute(
            "INSERT INTO public.t SELECT g, CASE WHEN g % 5 > 0 THEN decode(md5(g::text), 'hex')"
            " END, now() + g * interval '1 hour' FROM generate_series(1, 500) g"
        )
        columns = columns_of(session)
        older = dataclasses.replace(columns, version_num=160000)
        newer = wanted_majors()[0] * 10000 >= hashing.BYTES_HASH_SINCE
        assert (columns.row_hash() != older.row_hash()) == newer
        assert hashes(session, columns) == hashes(session, older)


def test_the_widest_table_can_be_hashed(session: psycopg.Connection) -> None:
    names = [f"c{n}" for n in range(1599)]
    session.execute(
        f"CREATE TABLE public.t (id int PRIMARY KEY, {', '.join(f'{n} bool' for n in names)})"
    )
    session.execute("INSERT INTO public.t (id) VALUES (1), (2), (3)")
    session.execute("ALTER TABLE public.t DROP CONSTRAINT t_pkey")
    session.execute("UPDATE public.t SET id = 1")
    columns = columns_of(session)
    (one,) = set(hashes(session, columns))
    for column in ("c0", "c58", "c59", "c1598"):
        session.execute(f"UPDATE public.t SET {column} = false")
        (other,) = set(hashes(session, columns))
        assert other != one
        one = other
