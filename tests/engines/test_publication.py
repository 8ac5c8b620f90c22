"""Publications (datapath rule 5): the application never sees one that breaks its writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from tidegate.engines.postgres import publication
from tidegate.engines.postgres.catalog import read_tables
from tidegate.errors import ConflictError, FailedPreconditionError, NotFoundError, WaitTimeoutError
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from fix_databases import Database

pytestmark = pytest.mark.servers

GOOD, OTHER = TableName("public", "good"), TableName("public", "other")

BAD = {
    "keyless": "CREATE TABLE public.bad (a int)",
    "deferrable": "CREATE TABLE public.bad (a int PRIMARY KEY DEFERRABLE)",
    "nothing": "CREATE TABLE public.bad (a int PRIMARY KEY);"
    " ALTER TABLE public.bad REPLICA IDENTITY NOTHING",
    "index gone": "CREATE TABLE public.bad (a int NOT NULL);"
    " CREATE UNIQUE INDEX i ON public.bad (a);"
    " ALTER TABLE public.bad REPLICA IDENTITY USING INDEX i; DROP INDEX public.i",
    "generated key": "CREATE TABLE public.bad"
    " (a int, g int GENERATED ALWAYS AS (a + 1) STORED PRIMARY KEY)",
    "unlogged": "CREATE UNLOGGED TABLE public.bad (a int PRIMARY KEY)",
    "partitioned": "CREATE TABLE public.bad (a int PRIMARY KEY) PARTITION BY LIST (a)",
}


@pytest.fixture
def tables(database: Database) -> Database:
    with database.admin() as connection:
        connection.execute("CREATE TABLE public.good (a int PRIMARY KEY, v text)")
        connection.execute("CREATE TABLE public.other (a int NOT NULL)")
        connection.execute("ALTER TABLE public.other REPLICA IDENTITY FULL")
    return database


def test_exactly_the_tables_asked_for_are_published(tables: Database) -> None:
    with tables.admin() as connection:
        connection.execute("CREATE TABLE public.heir () INHERITS (public.good)")
        assert publication.create(connection, "tidegate_x_fwd", [GOOD, OTHER])
        assert publication.tables(connection, "tidegate_x_fwd") == frozenset({GOOD, OTHER})
        assert not publication.create(connection, "tidegate_x_fwd", [OTHER, GOOD])
        assert publication.drop(connection, "tidegate_x_fwd")
        assert publication.tables(connection, "tidegate_x_fwd") is None
        assert not publication.drop(connection, "tidegate_x_fwd")


@pytest.mark.parametrize("bad", BAD)
def test_a_table_whose_updates_would_fail_is_never_published(tables: Database, bad: str) -> None:
    name = TableName("public", "bad")
    with tables.admin() as connection:
        connection.execute(BAD[bad])
        with pytest.raises(FailedPreconditionError, match="bad") as caught:
            publication.create(connection, "p", [GOOD, name])
        assert caught.value.details["tables"].keys() == {"bad"}
        assert publication.tables(connection, "p") is None
        if bad in ("keyless", "deferrable"):  # and indeed they would
            connection.execute("INSERT INTO public.bad VALUES (1)")
            connection.execute("UPDATE public.bad SET a = 2")


def test_identity_problems_name_only_the_tables_that_have_one(tables: Database) -> None:
    with tables.admin() as connection:
        connection.execute(BAD["keyless"])
        problems = publication.identity_problems(read_tables(connection).values(), 18)
    assert problems == {TableName("public", "bad"): "it has no primary key"}


def test_a_generated_column_in_a_full_identity_is_refused_where_the_server_refuses_its_updates(
    tables: Database,
) -> None:
    with tables.admin() as connection:
        connection.execute(
            "CREATE TABLE public.bad (a int PRIMARY KEY, g int GENERATED ALWAYS AS (a + 1) STORED);"
            " ALTER TABLE public.bad REPLICA IDENTITY FULL; INSERT INTO public.bad VALUES (1)"
        )
        major = connection.info.server_version // 10000
        found = read_tables(connection).values()
        refused = TableName("public", "bad") in publication.identity_problems(found, major)
        connection.execute("CREATE PUBLICATION theirs FOR TABLE public.bad")
        try:
            connection.execute("UPDATE public.bad SET a = 2")
        except psycopg.Error:
            assert refused
        else:
            assert not refused


def test_another_publication_of_that_name_is_a_conflict(tables: Database) -> None:
    with tables.admin() as connection:
        publication.create(connection, "p", [GOOD])
        with pytest.raises(ConflictError):
            publication.create(connection, "p", [GOOD, OTHER])
        connection.execute("DROP PUBLICATION p")
        connection.execute("CREATE PUBLICATION p FOR TABLE public.good WHERE (a > 5)")
        with pytest.raises(ConflictError):
            publication.create(connection, "p", [GOOD])


def test_a_missing_table_is_named(tables: Database) -> None:
    with tables.admin() as connection, pytest.raises(NotFoundError, match="nope"):
        publication.create(connection, "p", [GOOD, TableName("public", "nope")])


def test_writers_go_on_and_a_lock_is_waited_for_only_so_long(tables: Database) -> None:
    with tables.admin() as writer, tables.admin() as connection:
        with writer.transaction():
            writer.execute("INSERT INTO public.good VALUES (1)")
            assert publication.create(connection, "p", [GOOD])
        connection.execute("SET lock_timeout = 50")
        with writer.transaction():
            writer.execute("LOCK TABLE public.other IN SHARE UPDATE EXCLUSIVE MODE")
            with pytest.raises(WaitTimeoutError):
                publication.create(connection, "q", [OTHER])
        assert publication.tables(connection, "q") is None
