"""What depends on tables that are removed is named as the statement that drops it names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.table_removal import dependents, drop, leaning
from tidegate.topology.connections import Endpoint
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidegate.engines.postgres.local import LocalServer

pytestmark = pytest.mark.servers

LEANING = """
CREATE TABLE public.gone (id bigint PRIMARY KEY);
CREATE TABLE public.goes_too (id bigint PRIMARY KEY REFERENCES public.gone);
CREATE TABLE public.stays (id bigint);
CREATE TABLE public.note (id bigint, gone bigint REFERENCES public.gone) PARTITION BY RANGE (id);
CREATE TABLE public.note_1 PARTITION OF public.note FOR VALUES FROM (1) TO (9);
CREATE VIEW public.seen AS SELECT id FROM public.gone;
CREATE MATERIALIZED VIEW public."Kept" AS SELECT id FROM public.gone;
CREATE RULE log AS ON INSERT TO public.stays DO ALSO INSERT INTO public.gone VALUES (NEW.id);
"""


def test_views_materialized_views_rules_and_keys_are_told_apart(
    source_server: LocalServer, new_database: Callable[[LocalServer], str]
) -> None:
    server, name = source_server, new_database(source_server)
    with connect(Endpoint(server.conninfo(name), server.secret), purpose="test") as connection:
        connection.execute(LEANING.encode())
        tables = [TableName("public", "gone"), TableName("public", "goes_too")]
        found = dependents(connection, tables)
        assert found == [
            "foreign key note_gone_fkey of public.note",
            'materialized view public."Kept"',
            "rule log of public.stays",
            "view public.seen",
        ]
        for statement in (
            "ALTER TABLE public.note DROP CONSTRAINT note_gone_fkey",
            'DROP MATERIALIZED VIEW public."Kept"',
            "DROP RULE log ON public.stays",
            "DROP VIEW public.seen",
        ):
            connection.execute(statement.encode())
        assert dependents(connection, tables) == []


MORE = """
SET search_path = public;
CREATE TABLE gone (id serial PRIMARY KEY, other int REFERENCES gone, UNIQUE (other));
CREATE INDEX ON gone ((id + 1)); CREATE STATISTICS st ON id, other FROM gone;
CREATE FUNCTION own() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER own BEFORE INSERT ON gone FOR EACH ROW EXECUTE FUNCTION own();
CREATE POLICY own ON gone USING (true); CREATE PUBLICATION of_gone FOR TABLE gone;
CREATE FUNCTION counted() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM gone; END;
CREATE FUNCTION listed() RETURNS SETOF gone LANGUAGE sql AS 'SELECT * FROM gone';
CREATE TABLE kept (id int DEFAULT nextval('gone_id_seq'), was gone);
CREATE POLICY seen ON kept USING (EXISTS (SELECT FROM gone));
CREATE VIEW shown AS SELECT id FROM gone;
SET search_path = pg_catalog
"""


def test_whatever_else_keeps_a_table_from_being_dropped_is_described(
    source_server: LocalServer, new_database: Callable[[LocalServer], str]
) -> None:
    """Situation 14, relative: a completion names all of it before it changes anything."""
    server, name = source_server, new_database(source_server)
    with connect(Endpoint(server.conninfo(name), server.secret), purpose="test") as connection:
        connection.execute(MORE.encode())
        tables = [TableName("public", "gone")]
        assert leaning(connection, tables) == [
            "column was of table public.kept",
            "default value for column id of table public.kept",
            "function public.counted()",
            "function public.listed()",
            "policy seen on table public.kept",
        ]
        assert dependents(connection, tables) == ["view public.shown"]
        connection.execute(
            "DROP TABLE public.kept; DROP FUNCTION public.counted(); DROP FUNCTION public.listed()"
        )
        connection.execute("DROP VIEW public.shown")
        assert leaning(connection, tables) == []
        drop(connection, tables)
