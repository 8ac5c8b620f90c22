"""Makes and removes the schema ``_tidegate`` at a shard.

Every shard that takes part in a workflow carries this schema: stream rows and what belongs to
them at a target, the journal and the fence's bookkeeping at a source, VDiff tables. Each part is
idempotent DDL with a version; a part of the recorded version is not run again. The schema as a
whole has a release (:mod:`tidegate.engines.postgres.sidecar.releases`): a fresh one is made from
the parts and is at the newest release, an older one is brought there by the releases' changes.

Each workflow that names the shard has a row in ``_tidegate.workflow``, from the transaction that
makes the schema for it until it has ended. The schema stays while there is one: before its first
switch a workflow has nothing else at its source.

It must not decide anything about streams (``tidegate.dataplane.streams`` does) and never drops a
schema that still holds a workflow, a stream, a journal, an armed fence or a VDiff.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from psycopg import sql

from tidegate.engines.postgres import fence
from tidegate.engines.postgres.sidecar import journal, releases, vdiff_tables

if TYPE_CHECKING:
    from collections.abc import Iterable

    import psycopg

SCHEMA = "_tidegate"

#: Serialises makers and removers; arbitrary, constant for ever.
ADVISORY_LOCK = 0x7469_6465_6761_7465

#: Rows in any of these keep the schema alive.
KEEPING_TABLES = ("workflow", "stream", "journal", "fence", "vdiff")


@dataclass(frozen=True)
class Part:
    """DDL of one owner: raise ``version`` with every change; the DDL must be idempotent."""

    name: str
    version: int
    ddl: str


@dataclass(frozen=True)
class User:
    """A workflow that needs the schema."""

    workflow_uuid: str
    name: str


def _streams_part() -> Part:
    file = resources.files(__package__).joinpath("schema.sql")
    return Part("streams", 2, file.read_text(encoding="utf-8"))


def parts() -> list[Part]:
    """All parts, in the order they are run."""
    return [
        _streams_part(),
        Part("vdiff", vdiff_tables.VERSION, vdiff_tables.DDL),
        Part("fence", 1, fence.DDL),
        Part("switch", 1, journal.DDL),
        Part("workflows", 1, releases.WORKFLOWS),
    ]


def install(conn: psycopg.Connection, user: User | None = None) -> None:
    """Make the schema, or bring it up to this program's release; cheap when nothing is to do.

    Safe to run from several nodes at once. A schema that a newer program made stays as it is.

    Args:
        conn: a session on the shard.
        user: the workflow it is made for; the schema stays until :func:`leave` is called for it.
    """
    if user is None and _is_current(conn):
        return
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(%s)", [ADVISORY_LOCK])
        conn.execute("SET LOCAL client_min_messages = warning")
        found = releases.current(conn)
        conn.execute("CREATE SCHEMA IF NOT EXISTS _tidegate")
        conn.execute(
            "CREATE TABLE IF NOT EXISTS _tidegate.part"
            " (name text PRIMARY KEY, version int NOT NULL)"
        )
        for release in releases.missing(found):
            releases.apply(conn, release)
        for part, version in _installed(conn):
            if version >= part.version:
                continue
            conn.execute(sql.SQL(part.ddl))
            conn.execute(
                "INSERT INTO _tidegate.part VALUES (%s, %s)"
                " ON CONFLICT (name) DO UPDATE SET version = excluded.version",
                [part.name, part.version],
            )
        if found is None:
            releases.record(conn, releases.NEWEST)
        if user is not None:
            _enter(conn, [user])


def leave(conn: psycopg.Connection, user: User, others: Iterable[User] = ()) -> bool:
    """End a workflow's use of the schema and drop it unless it is still needed; says if it is gone.

    Args:
        conn: a session on the shard.
        user: the workflow that has ended.
        others: workflows that are known to name the shard; a release without the table of
            workflows made the schema without their rows.
    """
    if not is_installed(conn):
        return True
    known = list(others)
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(%s)", [ADVISORY_LOCK])
        if _exists(conn, "workflow"):
            conn.execute(
                "DELETE FROM _tidegate.workflow WHERE workflow_uuid = %s", [user.workflow_uuid]
            )
            _enter(conn, known)
        elif known:
            return False
        return remove_if_unused(conn)


def _enter(conn: psycopg.Connection, users: Iterable[User]) -> None:
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO _tidegate.workflow (workflow_uuid, name) VALUES (%s, %s)"
            " ON CONFLICT DO NOTHING",
            [(user.workflow_uuid, user.name) for user in users],
        )


def _is_current(conn: psycopg.Connection) -> bool:
    found = releases.current(conn)
    if found is None or releases.missing(found):
        return False
    return all(version >= part.version for part, version in _installed(conn))


def _installed(conn: psycopg.Connection) -> list[tuple[Part, int]]:
    """Every part with the version found at the shard; 0 when it is not there."""
    found: dict[str, int] = {}
    if is_installed(conn):
        rows = conn.execute("SELECT name, version FROM _tidegate.part").fetchall()
        found = {str(name): int(version) for name, version in rows}
    return [(part, found.get(part.name, 0)) for part in parts()]


def is_installed(conn: psycopg.Connection) -> bool:
    """Whether the shard carries the schema at all."""
    return _exists(conn, "part")


def remove_if_unused(conn: psycopg.Connection) -> bool:
    """Drop the schema unless something in it is still needed; says whether it is gone."""
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(%s)", [ADVISORY_LOCK])
        for table in KEEPING_TABLES:
            if not _exists(conn, table):
                continue
            query = sql.SQL("SELECT EXISTS (SELECT FROM {})").format(sql.Identifier(SCHEMA, table))
            row = conn.execute(query).fetchone()
            if row is not None and row[0]:
                return False
        conn.execute("SET LOCAL client_min_messages = warning")
        conn.execute("DROP SCHEMA IF EXISTS _tidegate CASCADE")
    return True


def _exists(conn: psycopg.Connection, table: str) -> bool:
    row = conn.execute("SELECT to_regclass(%s) IS NOT NULL", [f"{SCHEMA}.{table}"]).fetchone()
    return row is not None and bool(row[0])
