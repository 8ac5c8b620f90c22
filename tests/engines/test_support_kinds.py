"""Whether a database has an object, asked by its identity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tidegate.engines.postgres import support_kinds

if TYPE_CHECKING:
    from fix_databases import Database

pytestmark = pytest.mark.servers

MADE = """
CREATE SCHEMA "o'dd.one";
CREATE TYPE "o'dd.one".mood AS ENUM ('sad', 'happy');
CREATE DOMAIN "o'dd.one".small AS int;
CREATE FUNCTION "o'dd.one".same("o'dd.one".mood, text[]) RETURNS bool LANGUAGE sql AS 'SELECT true';
CREATE PROCEDURE "o'dd.one".act(int) LANGUAGE sql AS '';
CREATE AGGREGATE "o'dd.one".most(int) (SFUNC = int4larger, STYPE = int);
CREATE OPERATOR "o'dd.one".~~> (
    FUNCTION = "o'dd.one".same, LEFTARG = "o'dd.one".mood, RIGHTARG = text[]
);
CREATE COLLATION "o'dd.one".plain (locale = 'C');
CREATE SEQUENCE "o'dd.one".counted;
CREATE VIEW "o'dd.one".seen AS SELECT 1 AS one;
"""

#: Kind, identity of an object that is there, identities of some that are not.
ASKED = [
    ("SCHEMA", "{}", ["gone"]),
    ("TYPE", "{}.mood", ["{}.gone", "gone.mood"]),
    ("DOMAIN", "{}.small", ["{}.gone", "gone.small"]),
    (
        "FUNCTION",
        "{0}.same({0}.mood,pg_catalog.text[])",
        ["{0}.same({0}.gone)", "{0}.same(gone.mood)"],
    ),
    ("PROCEDURE", "{}.act(integer)", ["{}.act(text)", "{0}.act({0}.gone)"]),
    ("AGGREGATE", "{}.most(integer)", ["{0}.most({0}.gone)", "gone.most(integer)"]),
    (
        "OPERATOR",
        "{0}.~~>({0}.mood,pg_catalog.text[])",
        ["{0}.~~>({0}.gone,text[])", "gone.~~>(gone.a,b)"],
    ),
    ("COLLATION", "{}.plain", ["{}.gone", "gone.plain"]),
    ("SEQUENCE", "{}.counted", ["{}.gone", "gone.counted"]),
    ("VIEW", "{}.seen", ["{}.gone", "gone.seen"]),
]


def test_an_object_whose_types_are_missing_is_missing_and_no_error(database: Database) -> None:
    """The server's own look-up fails for such an identity, up to PostgreSQL 15."""
    schema = '"o\'dd.one"'
    with database.admin() as connection:
        connection.execute(MADE)
        for kind, identity, missing in ASKED:
            assert support_kinds.exists(connection, kind, identity.format(schema)), identity
            for each in missing:
                assert not support_kinds.exists(connection, kind, each.format(schema)), each
