"""Leaves CHECK constraints away until the rows are there, and does not hold old rows to them.

A row of the source has met its constraints there, when it was written. Whether it meets them today,
in another session, is another question: the constraint's function may have been changed since, or
look for another function on a ``search_path`` that is not ours; ``CHECK (due > now())`` stops being
true by itself. So tables and domains are made without their CHECKs; once the stream has passed H,
every CHECK is added NOT VALID, which holds for new rows, and validated where all rows meet it. One
that they do not meet stays NOT VALID.

What the log brings after H met its table's CHECKs at the source when it was written: every UPDATE
looks at all of them. Those of a domain are looked at only when a value is made, so the source may
update a row that holds a value the domain no longer takes, and the stream, which makes the value
again, could not follow. A domain's CHECK that some value does not meet is therefore not added.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.catalog import Table

#: CHECKs of domains: (domain's oid, identity, constraint, definition, comment).
DOMAIN_CHECKS = """
SELECT t.oid::int8, format('%%I.%%I', n.nspname, t.typname), c.conname::text,
       pg_get_constraintdef(c.oid), obj_description(c.oid, 'pg_constraint')
  FROM pg_constraint c
  JOIN pg_type t ON t.oid = c.contypid
  JOIN pg_namespace n ON n.oid = t.typnamespace
 WHERE c.contypid = ANY(%(needed)s) AND c.contype = 'c' AND c.convalidated
 ORDER BY 2, 3
"""

#: Rows that do not meet a constraint leave it NOT VALID; what passes is tried again.
_VALIDATE = """
DO $tidegate$ BEGIN
  ALTER TABLE {of} VALIDATE CONSTRAINT {name};
EXCEPTION
  WHEN lock_not_available OR deadlock_detected OR operator_intervention
    OR insufficient_resources OR system_error THEN RAISE;
  WHEN others THEN NULL;
END $tidegate$;
"""

#: The same for a domain; one that has the constraint was there before and is left alone. The server
#: does not look into arrays, ranges and composite types: there each value is made again.
_ADD_TO_DOMAIN = """
DO $tidegate$ DECLARE used record; BEGIN
  BEGIN
    ALTER DOMAIN {of} ADD CONSTRAINT {name} {definition};
  EXCEPTION WHEN feature_not_supported THEN
    ALTER DOMAIN {of} ADD CONSTRAINT {name} {definition} NOT VALID;
    FOR used IN
      WITH RECURSIVE holder(oid) AS (
        SELECT {identity}::regtype::oid
         UNION
        SELECT t.oid FROM holder h JOIN pg_type t
            ON h.oid IN (t.typbasetype, t.typelem)
            OR EXISTS (SELECT FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
                          AND r.rngsubtype = h.oid)
            OR EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = t.typrelid
                          AND a.atttypid = h.oid AND a.attnum > 0)
      )
      SELECT a.attrelid::regclass AS relation, a.attname AS name,
             format_type(a.atttypid, a.atttypmod) AS type
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid AND c.relkind = 'r'
       WHERE a.atttypid IN (SELECT oid FROM holder) AND a.attnum > 0 AND NOT a.attisdropped
    LOOP
      EXECUTE format(
        'SELECT count(%I::text::%s) FROM ONLY %s', used.name, used.type, used.relation);
    END LOOP;
  END;{comment}
EXCEPTION
  WHEN lock_not_available OR deadlock_detected OR operator_intervention
    OR insufficient_resources OR system_error THEN RAISE;
  WHEN others THEN NULL;
END $tidegate$;
"""


def left_away(table: Table) -> Iterator[str]:
    """What takes a new table's CHECKs away; those that are not valid come later anyway."""
    for check in table.checks:
        if check.validated:
            yield _composed(
                "ALTER TABLE ONLY {of} DROP CONSTRAINT {name};", _relation(table), check.name
            )


def added_late(table: Table) -> Iterator[str]:
    """What gives a table its CHECKs back, in order."""
    for check in table.checks:
        if check.validated:
            of = _relation(table)
            add = "ALTER TABLE ONLY {of} ADD CONSTRAINT {name} {definition} NOT VALID;"
            yield _composed(add, of, check.name, definition=check.ddl)
            yield _composed(_VALIDATE, of, check.name)


def left_away_of_domain(identity: str, name: str) -> str:
    """What takes a CHECK of a new domain away."""
    return _composed("ALTER DOMAIN {of} DROP CONSTRAINT {name};", sql.SQL(identity), name)


def added_late_to_domain(identity: str, name: str, definition: str, comment: str | None) -> str:
    """What gives a domain a CHECK back, with its comment."""
    of = sql.SQL(identity)
    said = ""
    if comment is not None:
        about = "COMMENT ON CONSTRAINT {name} ON DOMAIN {of} IS {comment};"
        quoted = sql.Literal(comment).as_string()
        said = f"\n  {_composed(about, of, name, comment=quoted)}"
    inside = (identity, name, definition, said)
    quote = next(q for q in map("$tidegate{}$".format, count()) if not any(q in s for s in inside))
    text = _ADD_TO_DOMAIN.replace("$tidegate$", quote)
    return _composed(text, of, name, definition=definition, comment=said)


def _relation(table: Table) -> sql.Identifier:
    return sql.Identifier(table.name.schema, table.name.name)


def _composed(
    text: str,
    of: sql.Composable,
    name: str,
    *,
    definition: str = "",
    comment: str = "",
) -> str:
    """A statement; ``definition`` is the catalogue's own text."""
    words = {
        "of": of,
        "name": sql.Identifier(name),
        "definition": sql.SQL(definition),
        "identity": sql.Literal(of.as_string()),
        "comment": sql.SQL(comment),
    }
    return sql.SQL(text).format(**words).as_string().strip()
