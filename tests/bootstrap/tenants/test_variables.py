"""Variables in SQL files: each value stays one value, wherever it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.bootstrap.tenants.faults import MigrationSourceError
from tidegate.bootstrap.tenants.folder import check_folder
from tidegate.bootstrap.tenants.model import RunState, Source, SourceKind, parse_source
from tidegate.engines.postgres.placeholders import PlaceholderError, bind, slots
from tidegate.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fix_tenants import Estate
    from tidegate.engines.postgres.local import LocalServer

servers = [pytest.mark.servers, pytest.mark.slow]
KNOWN = {"schema": "", "tenant": "", "days": "30"}


def written(text: str, **values: str) -> str:
    return bind(text, slots(text), values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SET x TO ${v}", 'SET x TO "it\'s ""x"""'),
        ("SELECT ${v:literal}", "SELECT 'it''s \"x\"'"),
        ("SELECT '${v}', 'a${v}b'", "SELECT 'it''s \"x\"', 'ait''s \"x\"b'"),
        ('CREATE ROLE "app_${v}"', 'CREATE ROLE "app_it\'s ""x"""'),
        ("SELECT ${v}.a, ${v}::text", 'SELECT "it\'s ""x""".a, "it\'s ""x"""::text'),
        ("DO $$BEGIN '${v}' ${v}; END$$", 'DO $$BEGIN \'it\'\'s "x"\' "it\'s ""x"""; END$$'),
        ("-- ${none}\nSELECT /* ${none} */ 1", "-- ${none}\nSELECT /* ${none} */ 1"),
        ("SELECT $${v}$$, $1, a$b", "SELECT $${v}$$, $1, a$b"),
    ],
)
def test_the_place_decides_how_a_value_is_written(text: str, expected: str) -> None:
    """Situation tenants 12: quoting rules are explicit."""
    assert written(text, v='it\'s "x"') == expected
    assert written("LIMIT ${v:raw} OFFSET ${v:raw}", v="30") == "LIMIT 30 OFFSET 30"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("SELECT 1;\nSELECT ${nobody};", "line 2: the variable ${nobody} is not known"),
        ("\n\nSELECT 'x\n${nobody}'", "line 4: the variable ${nobody} is not known"),
        ("DO $a$\nBEGIN\n'${nobody}' END $a$", "line 3: the variable ${nobody} is not known"),
        ("CREATE ROLE app_${tenant}", "line 1: app_${…}: outside quotes"),
        ("CREATE ROLE ${tenant}_app", "line 1: ${tenant}: outside quotes"),
        ("SELECT 'a'${tenant:literal}", "line 1: ${tenant:literal}: outside quotes"),
        ("SELECT ${tenant}${schema}", "line 1: ${tenant}: outside quotes"),
        ("SELECT '${tenant:raw}'", "line 1: ${tenant:raw}: inside quotes the quotes decide"),
        ("SELECT ${tenant:json}", "line 1: ${tenant:json}: after the colon comes literal or raw"),
        ("SELECT ${ tenant }", "line 1: ${ begins a variable"),
        ("SELECT '${'", "line 1: ${ begins a variable"),
        ("SELECT U&'${tenant}'", "line 1: variables cannot be used in a U&"),
        ("SELECT ${role}", "the variable ${role} is not known; there are days, schema, tenant"),
    ],
)
def test_what_is_no_variable_is_refused_by_name_and_line(text: str, reason: str) -> None:
    """Situation tenants 12: an unknown variable is refused before anything runs."""
    with pytest.raises(MigrationSourceError) as refused:
        check_folder("/sql", {"001_a.sql": text.encode()}, variables=KNOWN)
    assert reason in refused.value.details["findings"][0]["message"]
    silent = f"-- tidegate: no-variables\n{text}".encode()
    (script,) = check_folder("/sql", {"001_a.sql": silent}, variables=KNOWN).scripts
    assert not script.variables


def test_rows_of_a_copy_have_no_variables() -> None:
    text = b"COPY ${schema}.t FROM stdin;\n${nobody}\n\\.\n"
    (script,) = check_folder("/sql", {"001_a.sql": text}, variables=KNOWN).scripts
    (piece,) = script.bound({"schema": "a b"}).pieces
    assert (piece.text, piece.rows) == ('COPY "a b".t FROM stdin', "${nobody}\n")


@pytest.mark.parametrize("value", ["1; DROP", "a--b", "/*", "'", '"', "$$", "\\", "\n"])
def test_a_raw_value_cannot_leave_its_place(value: str) -> None:
    with pytest.raises(PlaceholderError, match="without :raw"):
        written("LIMIT ${v:raw}", v=value)
    with pytest.raises(PlaceholderError, match="inside a dollar quote"):
        written("DO $$ '${v}' $$", v="a$$b")


def test_variables_of_a_source_have_names_and_survive_storing() -> None:
    source = parse_source("app", "sql:/x", variables=(("days", "30"),))
    assert Source.from_json("app", source.to_json()) == source
    assert Source.from_json("app", {"kind": "sql", "address": "/x"}).variables == ()
    for wrong in ("schema", "a b", ""):
        with pytest.raises(InvalidArgumentError, match="cannot be a variable"):
            parse_source("app", "sql:/x", variables=((wrong, "1"),))
    with pytest.raises(InvalidArgumentError, match="has no variables"):
        parse_source("app", "alembic:/x.ini", variables=(("days", "30"),))
    assert source.kind is SourceKind.SQL


@pytest.fixture(scope="module")
def session(source_server: LocalServer) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(
        source_server.conninfo(), password=source_server.password, autocommit=True
    ) as connection:
        yield connection


class TestServer:
    """The server is the judge of what a value is."""

    pytestmark = servers

    @settings(max_examples=300, deadline=None)
    @given(st.text(min_size=1).filter(lambda v: "\0" not in v and len(v.encode()) < 40))
    def test_any_value_arrives_as_it_is(self, session: psycopg.Connection[Any], value: str) -> None:
        """Situation tenants 12: no value ends its quote, is cut, or changes."""
        text = (
            "SELECT ${v:literal}, '${v}', E'\\x41${v}', 'a${v}b', n.${v}"
            ' FROM (SELECT 1 AS "${v}") n'
        )
        cursor = session.execute(written(text, v=value).encode())
        assert cursor.fetchone() == (value, value, f"A{value}", f"a{value}b", 1)
        assert cursor.description is not None
        assert cursor.description[4].name == value

    def test_each_tenant_gets_its_own_values(
        self, estate: Estate, new_database: Callable[[LocalServer], str]
    ) -> None:
        """Situation tenants 12: the tenant's and the source's, in schemas and databases."""
        with estate.connect() as connection:
            for schema in ("t o'x", 't"y'):
                connection.execute('CREATE SCHEMA "{}"'.format(schema.replace('"', '""')).encode())
        estate.service.registry.discover("saas", schemas="t%", register=True)
        database = new_database(estate.server)
        place = estate.service.registry.place(keyspace="saas", database=database)
        estate.service.registry.add("whole", place)
        estate.write(
            "001_orders.sql",
            "CREATE TABLE ${schema}.orders (id int, tenant text DEFAULT ${tenant:literal});\n"
            "COPY ${schema}.orders (id) FROM stdin;\n1\n\\.\n"
            "CREATE FUNCTION days() RETURNS int LANGUAGE sql AS $$ SELECT ${days:raw} $$;\n"
            "COMMENT ON TABLE orders IS 'of ${tenant} in ${schema}, ${days} days';\n",
        )
        estate.write(
            "002_index.sql",
            "-- tidegate: no-transaction\nCREATE INDEX CONCURRENTLY i ON ${schema}.orders (id);",
        )
        estate.service.sources.add("app", estate.source, variables=(("days", "30"),))
        run = estate.upgrade(source="app")
        assert run.state is RunState.DONE, estate.items(run)
        with estate.connect() as connection:
            for schema, name in (("t o'x", "t~20o'x"), ('t"y', 't"y')):
                connection.execute(
                    psycopg.sql.SQL("SET search_path = {}").format(psycopg.sql.Identifier(schema))
                )
                row = connection.execute(
                    "SELECT tenant, days(), obj_description('orders'::regclass) FROM orders"
                ).fetchone()
                assert row == (name, 30, f"of {name} in {schema}, 30 days")
