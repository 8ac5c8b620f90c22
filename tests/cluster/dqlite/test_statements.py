"""What is sent to libdqlite, what is refused, and what is declared otherwise."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.cluster.dqlite.statements import MAX_PARAMETERS, as_declared, refusal
from tidegate.server.node import UPDATES

REFUSED = (
    "VACUUM",
    "vacuum into 'x'",
    "ATTACH ':memory:' AS x",
    "DETACH x",
    "CREATE TEMP TABLE t (id integer)",
    "create temporary table t (id integer)",
    "PRAGMA journal_mode=DELETE",
    "PRAGMA journal_mode",
    "PRAGMA main.synchronous = 2",
    'PRAGMA "main".page_size=1',
    "  PRAGMA foreign_keys = OFF",
    "PRAGMA wal_checkpoint(TRUNCATE)",
    "BEGIN",
    "BEGIN IMMEDIATE",
    "COMMIT",
    "END",
    "ROLLBACK",
)
SENT = (
    "SELECT 1",
    "SELECT 'VACUUM'",
    "INSERT INTO t VALUES (1) RETURNING id",
    'PRAGMA main.table_info("t")',
    'PRAGMA "main".index_list("t")',
    "PRAGMA foreign_keys",
    "PRAGMA foreign_key_list(t)",
    "SAVEPOINT a",
    "ROLLBACK TO SAVEPOINT a",
    "ROLLBACK TRANSACTION TO SAVEPOINT a",
    "RELEASE SAVEPOINT a",
    "CREATE TABLE t (temp text, vacuum text)",
    "CREATE TABLE endings (id integer)",
)


@pytest.mark.parametrize("statement", REFUSED)
def test_what_ends_the_server_is_not_sent(statement: str) -> None:
    assert "not safe" in (refusal(statement, 0) or "")


@pytest.mark.parametrize("statement", SENT)
def test_everything_else_is(statement: str) -> None:
    assert refusal(statement, 0) is None
    assert refusal(statement, MAX_PARAMETERS) is None


def test_more_parameters_than_the_wire_counts_are_refused() -> None:
    assert "256 parameters" in (refusal("SELECT 1", 256) or "")


def test_all_updates_of_the_product_may_be_sent() -> None:
    statements = [statement for update in UPDATES for statement in update.statements]
    assert statements
    for statement in statements:
        assert refusal(statement, 0) is None
        connection = sqlite3.connect(":memory:")
        if statement.lstrip().upper().startswith("CREATE TABLE"):
            connection.execute(as_declared(statement))
        connection.close()


def test_only_the_types_of_columns_are_declared_otherwise() -> None:
    assert as_declared("CREATE TABLE t (a boolean, b DATE NOT NULL, c timestamp)") == (
        "CREATE TABLE t (a NUMERIC, b NUMERIC NOT NULL, c NUMERIC)"
    )
    assert as_declared('CREATE TABLE t (\n  "a b" datetime\n)') == (
        'CREATE TABLE t (\n  "a b" NUMERIC\n)'
    )
    assert as_declared("ALTER TABLE t ADD COLUMN date boolean DEFAULT 1") == (
        "ALTER TABLE t ADD COLUMN date NUMERIC DEFAULT 1"
    )
    for kept in (
        "CREATE TABLE date (id integer, date text, boolean integer)",
        "CREATE TABLE IF NOT EXISTS timestamp (id integer REFERENCES date (id))",
        "ALTER TABLE t ADD date text",
        "ALTER TABLE t RENAME COLUMN a TO date",
        "CREATE TABLE t (a text DEFAULT 'a date, it''s a date, b')",
        "CREATE TABLE t (a dated, b booleans, updated integer)",
        "INSERT INTO t VALUES ('CREATE TABLE x (a boolean)')",
        "SELECT a boolean FROM t",
    ):
        assert as_declared(kept) == kept


names = st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(
    lambda name: name.upper() not in {"DATE", "KEY", "TO", "AS", "BY", "ADD", "OR", "AND", "NOT"}
)
types = st.sampled_from(["integer", "BOOLEAN", "text", "date", "Timestamp", "datetime", "bigint"])


@given(st.dictionaries(names, types, min_size=1, max_size=6))
def test_a_table_has_the_same_affinities_as_in_sqlite(columns: dict[str, str]) -> None:
    body = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
    found = []
    for statement in (f"CREATE TABLE t ({body})", as_declared(f"CREATE TABLE t ({body})")):
        connection = sqlite3.connect(":memory:")
        connection.execute(statement)
        marks = ", ".join("?" * len(columns))
        for value in ("12", "1.5", "x", 1, None, "2026-01-02", b"z"):
            connection.execute(f"INSERT INTO t VALUES ({marks})", [value] * len(columns))
        kinds = ", ".join(f'typeof("{name}")' for name in columns)
        found.append(connection.execute(f"SELECT {kinds}, * FROM t").fetchall())
        declared = {row[2].upper() for row in connection.execute("PRAGMA table_info(t)")}
        connection.close()
    assert found[0] == found[1]
    assert not declared & {"BOOLEAN", "DATE", "TIMESTAMP", "DATETIME"}
