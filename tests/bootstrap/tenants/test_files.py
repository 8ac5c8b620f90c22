"""Files as people have them, run in real tenants: schemas and databases, two of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fix_tenants import ORDERS
from tidegate.bootstrap.tenants.model import ItemState, RunState
from tidegate.engines.postgres.script import UnreadableError, statements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fix_tenants import Estate
    from tidegate.engines.postgres.local import LocalServer

pytestmark = [pytest.mark.servers, pytest.mark.slow]

ROWS = "COPY orders (id, note) FROM stdin;\n1\tit's; $$\n2\t\\N\n3\ttab\\there\n\\.\n"


def notes(estate: Estate, schema: str) -> list[Any]:
    with estate.connect() as connection:
        query = f'SELECT note FROM "{schema}".orders ORDER BY id'
        return [row[0] for row in connection.execute(query.encode())]


def test_rows_of_a_copy_reach_schemas_and_databases(
    estate: Estate, new_database: Callable[[LocalServer], str]
) -> None:
    """Situation tenants 08: ``COPY … FROM stdin`` with rows failed as "a quote is not closed"."""
    estate.add_schemas(2)
    registry = estate.service.registry
    databases = [new_database(estate.server) for _ in range(2)]
    for number, database in enumerate(databases):
        place = registry.place(keyspace="saas", shard="0", database=database)
        registry.add(f"db{number}", place)
    estate.write("001_orders.SQL", ORDERS + "\r\n" + ROWS.replace("\n", "\r\n"))
    estate.write("002_more.sql", "/* licence */\n-- tidegate: no-transaction\n" + ORDER_COPY)
    run = estate.upgrade(jobs=1)
    assert run.state is RunState.DONE, estate.items(run)
    expected = ["it's; $$", None, "tab\there", "four", "five"]
    for schema in ("t001", "t002"):
        assert notes(estate, schema) == expected
        assert estate.recorded(schema) == ["001", "002"]
    for database in databases:
        with psycopg.connect(
            estate.server.conninfo(database), password=estate.server.password
        ) as connection:
            found = connection.execute("SELECT note FROM public.orders ORDER BY id").fetchall()
        assert [row[0] for row in found] == expected


ORDER_COPY = "COPY orders FROM STDIN (FORMAT csv);\n4,four\n5,five\n\\.\nANALYZE orders;"


def test_a_row_that_does_not_fit_leaves_nothing_and_names_file_and_line(estate: Estate) -> None:
    """Situation tenants 08: the rows belong to the file's transaction."""
    estate.add_schemas(2)
    estate.write("001_orders.sql", ORDERS)
    estate.write("002_rows.sql", "SELECT 1;\n" + ROWS + "SELECT 1;\n\nSELECT no_such();\n")
    estate.write("003_rows.sql", "SELECT 1;\nCOPY orders FROM stdin;\nx\ty\n\\.\n")
    run = estate.upgrade(to="002", jobs=1)
    failed = estate.items(run)["t001"]
    assert failed.state is ItemState.FAILED
    assert failed.message.startswith("002_rows.sql line 9: function no_such() does not exist")
    with estate.connect() as connection:
        for schema in ("t001", "t002"):
            found = connection.execute(f"SELECT to_regclass('{schema}.orders')").fetchone()
            assert found == (None,) or notes(estate, schema) == []
    estate.write("002_rows.sql", ROWS)
    estate.service.cancel(run.id)
    run = estate.upgrade(jobs=1)
    failed = estate.items(run)["t001"]
    assert failed.message.startswith("003_rows.sql: invalid input syntax for type bigint")
    assert "COPY orders, line 1, column id" in failed.message


def test_a_file_of_comments_is_recorded(estate: Estate) -> None:
    """Situation tenants 08: an empty or comment-only file is a version like any other."""
    estate.add_schemas(2)
    estate.write("V1__orders.sql", ORDERS)
    estate.write("V2__nothing.sql", "-- nothing")
    estate.write("V3__empty.sql", "")
    estate.write("V10__nothing_alone.sql", "-- tidegate: no-transaction")
    assert estate.upgrade().state is RunState.DONE
    assert set(estate.stored().values()) == {"10"}
    assert estate.recorded("t002") == ["1", "2", "3", "10"]


@pytest.fixture(scope="module")
def session(source_server: LocalServer) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(
        source_server.conninfo(), password=source_server.password, autocommit=True
    ) as connection:
        yield connection


LITERALS = [
    "1",
    "'a;b'",
    "'it''s;'",
    "E'it\\'s;'",
    "E'a' -- x;'\n 'b\\';'",
    "'a'\n';\\'",
    "U&'d\\0061;'",
    "N'n;'",
    "B'01'",
    "$$;'$$",
    "$a$;$$;$a$",
    "$é$;$$;$é$",
    "$€$;$$;$€$",
    "length($$'$$)",
    "(1;)",
    "1 AS a$$",
    "1 AS é$$",
    '1 AS ";--"',
    '1 AS U&"d\\0061;"',
    "'\\'",
    "1 \xa0",
    "'/*' || '*/'",
    "1 + - 2",
    "'",
    "$$",
    '"',
]
TRIVIA = [" ", "\n", "-- ;'\n", "/* ; ' */", "/* /* ; */ $$ */", "\t\f", "--\r", "/**/"]


def results(session: psycopg.Connection[Any], texts: list[str]) -> list[Any] | None:
    found = []
    for text in texts:
        cursor = session.cursor()
        try:
            cursor.execute(text.encode())
        except psycopg.Error:
            return None
        while True:
            if cursor.description is not None:
                found.append((cursor.description[0].name, cursor.fetchall()))
            if not cursor.nextset():
                break
    return found


@settings(
    max_examples=600,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.lists(
        st.tuples(st.sampled_from(TRIVIA), st.sampled_from(LITERALS), st.sampled_from(TRIVIA)),
        max_size=5,
    ),
    st.booleans(),
)
def test_the_server_cuts_a_script_in_the_same_places(
    session: psycopg.Connection[Any], parts: list[tuple[str, str, str]], is_closed: bool
) -> None:
    """Situation tenants 08: whatever the server takes as a whole gives the same one by one."""
    text = ";".join(f"{before}SELECT{before}{what}{after}" for before, what, after in parts)
    text += ";" if is_closed else ""
    whole = results(session, [text])
    try:
        cut = [each.text for each in statements(text)]
    except UnreadableError:
        assert whole is None
        return
    if whole is not None:
        assert results(session, cut) == whole
