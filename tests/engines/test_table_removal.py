"""What depends on tables that are removed is named as the statement that drops it names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tidegate.engines.postgres.connection import connect
from tidegate.engines.postgres.table_removal import dependents
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
