"""Tenants that the rows of a query name: what the rows mean, and what a query may do."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fix_tenants import ORDERS
from tidegate.bootstrap.tenants.looking import ShardName, spots_of
from tidegate.bootstrap.tenants.model import ItemState, Place, RunState, Tenant
from tidegate.bootstrap.tenants.names import Spot, named
from tidegate.bootstrap.tenants.provisioning import Discovery
from tidegate.bootstrap.tenants.selection import Selection
from tidegate.engines.postgres.tenant_places import NamedRows
from tidegate.errors import InvalidArgumentError

if TYPE_CHECKING:
    from fix_tenants import Estate

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SHARD = ShardName("saas", "0")


def spots(*rows: tuple[str, str]) -> list[Spot]:
    return [Spot(SHARD.place(schema=schema), name) for schema, name in rows]


@pytest.mark.parametrize(
    ("columns", "rows", "found"),
    [
        (("schema",), [("a",), ("b",), ("a",)], spots(("a", ""), ("b", ""))),
        (("name", "schema"), [("Acme", "a"), (None, "b")], spots(("a", "Acme"), ("b", ""))),
        (("database", "schema"), [("own", "a"), (None, "b")], spots(("a", ""), ("b", ""))),
        (("database", "schema"), [("own", None)], [Spot(SHARD.place(database="own"))]),
        (("database",), [("far",)], [Spot(SHARD.place(database="far"))]),
    ],
)
def test_a_row_says_where_a_tenant_is_and_may_name_it(
    columns: tuple[str, ...], rows: list[tuple[str | None, ...]], found: list[Spot]
) -> None:
    """Situation tenants 12: discovery by a query."""
    assert spots_of(NamedRows(columns, tuple(rows)), SHARD, "own") == found


@pytest.mark.parametrize(
    ("columns", "rows", "reason"),
    [
        (("tenant",), [("a",)], "has the columns tenant"),
        (("name",), [("a",)], "has the columns name"),
        (("schema", "schema"), [("a", "a")], "has the columns schema, schema"),
        (("schema", "name"), [("a", "x"), (None, "y")], "row 2 .* neither a schema"),
        (("schema",), [("x" * 64,)], "cannot be the name of a schema"),
        (("schema",), [("a",)] * 100_001, "more than 100000"),
    ],
)
def test_rows_that_name_no_place_are_refused_as_a_whole(
    columns: tuple[str, ...], rows: list[tuple[str | None, ...]], reason: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=reason) as refused:
        spots_of(NamedRows(columns, tuple(rows)), SHARD, "own")
    assert refused.value.next_step


def test_a_clash_of_given_names_leaves_out_its_pair_only() -> None:
    """Situation tenants 12: clashes concern their pair only."""
    owner = Tenant("1", "acme", Place("saas", "0", schema="old"), NOW)
    found = named(
        [
            *spots(("old", "renamed"), ("new", "acme")),  # a name that has an owner
            *spots(("a", "x"), ("b", "x")),  # one name for two places
            *spots(("c", "y"), ("c", "z")),  # two names for one place
            Spot(SHARD.place(schema="gone"), "gone", is_there=False),
            *spots(("d", "two words"), ("e", ""), ("two words", "")),
        ],
        [owner],
    )
    assert [each.name for each in found if each.is_registered] == ["acme"]
    new = [(each.name, each.place.schema) for each in found if each.is_new]
    assert new == [("two~20words", "d"), ("e", "e"), ("two~20words@0", "two words")]
    assert {each.place.schema: each.reason for each in found if each.reason} == {
        "new": "the name acme belongs to saas/0 schema old",
        "a": "the query gives the name x to another place, too",
        "b": "the query gives the name x to another place, too",
        "c": "the query gives it 2 names",
        "gone": "it is not there, or not a tenant's",
    }


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["", "a", "b", "x"]))))
def test_no_name_and_no_place_is_given_twice(rows: list[tuple[str, str]]) -> None:
    """Situation tenants 12: what is registered is unambiguous whatever a query answers."""
    new = [each for each in named(spots(*rows), []) if each.is_new]
    assert len({each.name for each in new}) == len({each.place for each in new}) == len(new)


CUSTOMERS = """
CREATE TABLE customer (name text, "schema" text);
INSERT INTO customer VALUES ('Acme', 't001'), ('Globex', 't002'), ('twice', 't003'),
    ('twice', 't004'), ('later', 'not_yet'), ('50%', 't005'), ('own', 'pg_catalog');
"""


@pytest.mark.servers
@pytest.mark.slow
class TestOnAShard:
    def test_a_run_registers_what_a_query_names_and_tells_what_it_leaves_out(
        self, estate: Estate
    ) -> None:
        """Situation tenants 12: discovery by a query, as part of the run."""
        estate.add_schemas(5, register=False)
        estate.write("001_orders.sql", ORDERS)
        with estate.connect() as connection:
            connection.execute(CUSTOMERS)
        query = "SELECT name, schema FROM customer WHERE name LIKE '%' -- all\n;"
        asked = replace(
            estate.request(),
            selection=Selection(keyspace="saas"),
            discovery=Discovery("", "", query),
        )
        planned = estate.service.plan(asked)
        assert [item.name for item in planned.items] == ["50~25", "Acme", "Globex"]
        assert estate.service.tenants.all() == []
        run, left_out = estate.service.begin(asked)
        assert left_out == list(planned.left_out)
        assert sorted(each.place.schema for each in left_out) == [
            "not_yet",
            "pg_catalog",
            "t003",
            "t004",
        ]
        run = estate.work(run)
        assert run.state is RunState.DONE
        assert estate.in_state(run, ItemState.DONE) == ["50~25", "Acme", "Globex"]
        assert estate.tables("t001") == ["orders", "tidegate_migration"]
        with estate.connect() as connection:
            connection.execute("DELETE FROM customer WHERE schema = 't004'; CREATE SCHEMA not_yet")
        run = estate.work(estate.service.upgrade(asked))
        assert estate.in_state(run, ItemState.DONE) == ["later", "twice"]
        found = estate.service.registry.discover(
            "saas",
            query=f"SELECT datname AS database FROM pg_database WHERE datname = '{estate.name}'",
        )
        assert [(each.name, each.is_new) for each in found] == [(estate.name, True)]

    def test_a_query_looks_and_does_nothing_else(self, estate: Estate) -> None:
        """Situation tenants 12: it is SQL that somebody sends over the network."""
        estate.add_schemas(1, register=False)
        with estate.connect() as connection:
            connection.execute("CREATE TABLE seen (n int); CREATE SEQUENCE s")
            connection.execute(
                "CREATE FUNCTION writes() RETURNS text LANGUAGE sql"
                " AS $$ INSERT INTO public.seen VALUES (1) RETURNING 't001' $$"
            )
        for query, reason in (
            ("DELETE FROM seen", "syntax error"),
            ("SELECT 't001' AS schema) AS x; DROP TABLE seen; SELECT * FROM (SELECT 1", "multiple"),
            (
                "WITH gone AS (DELETE FROM seen RETURNING n) SELECT n AS schema FROM gone",
                "top level",
            ),
            ("SELECT writes() AS schema", "read-only"),
            ("SELECT nextval('s')::text AS schema", "read-only"),
            ("SELECT name AS schema FROM customer", "does not exist"),
            ("SELECT 1/0 AS schema", "division by zero"),
            ("COPY seen TO PROGRAM 'cat'", "syntax error"),
            ("", "schemas or databases"),
            ("\0", "query that names tenants fails"),
        ):
            with pytest.raises(InvalidArgumentError, match=reason) as refused:
                estate.service.registry.discover("saas", query=query, register=True)
            assert refused.value.next_step
        assert estate.service.tenants.all() == []
        with estate.connect() as connection:
            assert connection.execute("SELECT count(*) FROM seen").fetchone() == (0,)
