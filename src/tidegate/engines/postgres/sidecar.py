"""Makes and removes the schema ``_tidegate`` at a shard.

Every shard that takes part in a workflow carries this schema: stream rows and what belongs to
them at a target, the journal and the fence's bookkeeping at a source, VDiff tables. Each part is
idempotent DDL with a version; a part of the recorded version is not run again. The schema as a
whole has a release (:mod:`tidegate.engines.postgres.sidecar_releases`): a fresh one is made from
the parts and is at the newest release, an older one is brought there by the releases' changes.

It must not decide anything about streams (``tidegate.dataplane.streams`` does) and never drops a
schema that still holds a stream, a journal, an armed fence or a VDiff.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from psycopg import sql

from tidegate.engines.postgres import fence, journal, vdiff_tables
from tidegate.engines.postgres import sidecar_releases as releases

if TYPE_CHECKING:
    import psycopg

SCHEMA = "_tidegate"

#: Serialises makers and removers; arbitrary, constant for ever.
ADVISORY_LOCK = 0x7469_6465_6761_7465

#: Rows in any of these keep the schema alive.
KEEPING_TABLES = ("stream", "journal", "fence", "vdiff")


@dataclass(frozen=True)
class Part:
    """DDL of one owner: raise ``version`` with every change; the DDL must be idempotent."""

    name: str
    version: int
    ddl: str


def _streams_part() -> Part:
    file = resources.files(__package__).joinpath("sidecar.sql")
    return Part("streams", 2, file.read_text(encoding="utf-8"))


def parts() -> list[Part]:
    """All parts, in the order they are run."""
    return [
        _streams_part(),
        Part("vdiff", vdiff_tables.VERSION, vdiff_tables.DDL),
        Part("fence", 1, fence.DDL),
        Part("switch", 1, journal.DDL),
    ]


def install(conn: psycopg.Connection) -> None:
    """Make the schema, or bring it up to this program's release; cheap when nothing is to do.

    Safe to run from several nodes at once. A schema that a newer program made stays as it is.
    """
    if _is_current(conn):
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
