"""The objects a fence consists of: one function for each workflow and side, triggers that call it.

Statement triggers are BEFORE INSERT, UPDATE, DELETE and TRUNCATE, and ALWAYS, so that replica
roles meet them too. A row trigger is added where a statement can reach the rows without naming
the table: through an inheritance parent outside the set, or by a native subscription (datapath
rule 7). The function qualifies every operator: it runs under the ``search_path`` of whoever
writes, and setting one for each call would cost more than the rest of it.

When to replace the function and what to wait for then is :mod:`tidegate.engines.postgres.fence`.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Literal

from psycopg import sql

from tidegate.engines.postgres.catalog import OWN_SCHEMA, Table
from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.rows import TupleRow

#: What a fenced write fails with. Clients retry it; documented in ``docs/reference/fence.md``.
FENCE_SQLSTATE = "TG001"

Side = Literal["source", "target"]


def function_name(workflow_uuid: str, side: Side) -> str:
    """Name of the fence's function in Tidegate's schema; its triggers start with ``_tidegate_``."""
    return f"fence_{uuid.UUID(workflow_uuid).hex[:12]}_{side}"


_LET_THROUGH = """
  IF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN RETURN OLD; END IF;
  RETURN NEW;
END"""

_DENY = """
BEGIN
  IF session_user OPERATOR(pg_catalog.<>) {exempt} THEN
    RAISE EXCEPTION USING
      ERRCODE = {sqlstate},
      MESSAGE = pg_catalog.concat('writes to ', TG_TABLE_SCHEMA, '.', TG_TABLE_NAME,
                                  ' are stopped by Tidegate workflow ', {workflow}),
      HINT = 'Run the transaction again; by then the router leads to where writes are taken.',
      SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME;
  END IF;"""


def replace_function(
    connection: Connection[TupleRow],
    workflow_uuid: str,
    side: Side,
    *,
    workflow: str,
    exempt: str,
    denying: bool,
) -> None:
    """Make the function, or put the other body in its place; ``exempt`` always gets through."""
    body: sql.Composable = sql.SQL("\nBEGIN")
    if denying:
        body = sql.SQL(_DENY).format(
            exempt=sql.Literal(exempt),
            sqlstate=sql.Literal(FENCE_SQLSTATE),
            workflow=sql.Literal(workflow),
        )
    text = sql.Composed([body, sql.SQL(_LET_THROUGH)]).as_string(connection)
    connection.execute(
        sql.SQL("CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql AS {}").format(
            sql.Identifier(OWN_SCHEMA, function_name(workflow_uuid, side)), sql.Literal(text)
        )
    )


def _identifier(name: TableName) -> sql.Identifier:
    return sql.Identifier(name.schema, name.name)


def _trigger_names(function: str) -> tuple[str, str, str]:
    """Trigger for DML statements, for TRUNCATE, and for rows."""
    return (f"_tidegate_{function}", f"_tidegate_{function}_all", f"_tidegate_{function}_row")


def _needs_row_trigger(table: Table, tables: set[TableName]) -> bool:
    return table.subscribed or not tables.issuperset(table.parents)


def uncovered(found: dict[TableName, Table], function: str) -> list[Table]:
    """Tables on which a trigger of the fence is missing or does not always fire."""
    statement, truncate, row = _trigger_names(function)
    missing = []
    for table in found.values():
        there = {t.name for t in table.triggers if t.own and t.enabled == "A"}
        wanted = {statement, truncate}
        if _needs_row_trigger(table, set(found)):
            wanted.add(row)
        if not wanted <= there:
            missing.append(table)
    return missing


def trigger_statements(
    table: Table, tables: set[TableName], workflow_uuid: str, side: Side
) -> list[sql.Composed]:
    """What puts the fence on one table; needs SHARE ROW EXCLUSIVE on it, may be repeated."""
    function = function_name(workflow_uuid, side)
    statement, truncate, row = _trigger_names(function)
    wanted = [
        (statement, "INSERT OR UPDATE OR DELETE", "STATEMENT"),
        (truncate, "TRUNCATE", "STATEMENT"),
    ]
    if _needs_row_trigger(table, tables):
        wanted.append((row, "INSERT OR UPDATE OR DELETE", "ROW"))
    statements = []
    for name, events, level in wanted:
        statements.append(
            sql.SQL(
                "CREATE OR REPLACE TRIGGER {} BEFORE {} ON {} FOR EACH {} EXECUTE FUNCTION {}()"
            ).format(
                sql.Identifier(name),
                sql.SQL(events),
                _identifier(table.name),
                sql.SQL(level),
                sql.Identifier(OWN_SCHEMA, function),
            )
        )
        statements.append(
            sql.SQL("ALTER TABLE ONLY {} ENABLE ALWAYS TRIGGER {}").format(
                _identifier(table.name), sql.Identifier(name)
            )
        )
    return statements


def standing(connection: Connection[TupleRow], function: str) -> list[tuple[TableName, list[str]]]:
    """Tables that carry triggers of the function, with the triggers' names."""
    rows = connection.execute(
        "SELECT n.nspname::text, c.relname::text, array_agg(t.tgname::text ORDER BY t.tgname)"
        " FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE t.tgfoid = to_regprocedure(%s) AND t.tgparentid = 0"
        " GROUP BY 1, 2 ORDER BY 1, 2",
        [f"{function}()"],
    ).fetchall()
    return [(TableName(schema, name), triggers) for schema, name, triggers in rows]
