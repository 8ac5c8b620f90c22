"""Releases of the schema `_tidegate` of a shard: what changed from each to the next.

Decides what brings an older schema to a newer release. A release's change only adds, and what it
adds has a default: workers that were started before it go on with the schema of after it. It is run
in one transaction with the note that it has been, under the shard's lock of makers and removers.

The parts (``sidecar.parts``) are the schema as it is made afresh. Whoever changes a part after a
release adds a release here with the same change; a test compares a fresh schema with the first one
that all changes were applied to. A released change is never edited.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from psycopg import sql

if TYPE_CHECKING:
    import psycopg

_TABLE: Final = "CREATE TABLE IF NOT EXISTS _tidegate.release (version text PRIMARY KEY)"


@dataclass(frozen=True, slots=True)
class Release:
    """One release: three numbers, and the change from the one before; the first has none."""

    version: str
    change: str


_ACCOUNTS: Final = "ALTER TABLE _tidegate.stream ADD COLUMN IF NOT EXISTS accounts jsonb"

_VDIFF_MOMENTS: Final = """
ALTER TABLE _tidegate.stream_log ADD COLUMN code text NOT NULL DEFAULT '';
ALTER TABLE _tidegate.vdiff ADD COLUMN waits_for text NOT NULL DEFAULT '';
ALTER TABLE _tidegate.vdiff_table ADD COLUMN moment_at timestamptz, ADD COLUMN positions jsonb,
    ADD COLUMN retaken int NOT NULL DEFAULT 0;
ALTER TABLE _tidegate.vdiff_chunk ADD COLUMN keys jsonb;
"""

#: Which workflows name the shard, also those that have nothing else there yet.
WORKFLOWS: Final = """
CREATE TABLE IF NOT EXISTS _tidegate.workflow (
    workflow_uuid uuid PRIMARY KEY,
    name text NOT NULL,
    since timestamptz NOT NULL DEFAULT clock_timestamp()
);
"""

RELEASES: Final = (
    Release("1.0.0", ""),
    Release("1.1.0", _ACCOUNTS),
    Release("1.2.0", _VDIFF_MOMENTS),
    Release("1.3.0", WORKFLOWS),
)
"""All releases, oldest first; the list only grows at its end."""

FOUNDING: Final = RELEASES[0].version
"""What a schema without a note of its release is at."""

NEWEST: Final = RELEASES[-1].version


def current(conn: psycopg.Connection) -> str | None:
    """The release of the shard's schema; None when it has no schema."""
    row = conn.execute(
        "SELECT to_regclass('_tidegate.part') IS NOT NULL,"
        " to_regclass('_tidegate.release') IS NOT NULL"
    ).fetchone()
    assert row is not None
    if not row[0]:
        return None
    noted = conn.execute("SELECT version FROM _tidegate.release").fetchone() if row[1] else None
    return FOUNDING if noted is None else str(noted[0])


def missing(found: str | None, known: tuple[Release, ...] = RELEASES) -> list[Release]:
    """The releases that a schema lacks; none for a fresh one, and none for a newer one."""
    versions = [release.version for release in known]
    if found is None or found not in versions:
        return []
    return list(known[versions.index(found) + 1 :])


def apply(conn: psycopg.Connection, release: Release) -> None:
    """Bring the schema to the release from the one before, in the caller's transaction."""
    conn.execute(sql.SQL(release.change))
    record(conn, release.version)


def record(conn: psycopg.Connection, version: str) -> None:
    """Note the release that the schema is at, in the caller's transaction."""
    conn.execute("SET LOCAL client_min_messages = warning")
    conn.execute(_TABLE)
    conn.execute("DELETE FROM _tidegate.release")
    conn.execute("INSERT INTO _tidegate.release VALUES (%s)", [version])
