"""The epochs of a workflow's streams at a shard, for whoever decides who may act on them.

A worker's own epoch is checked where it commits, in :mod:`tidegate.dataplane.streams`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.postgres.sidecar.installation import has_streams

if TYPE_CHECKING:
    import psycopg


def read_epochs(conn: psycopg.Connection, workflow_uuid: str) -> list[int]:
    """The epochs of a workflow's streams at a shard; empty where it has none."""
    if not has_streams(conn):
        return []
    query = "SELECT epoch FROM _tidegate.stream WHERE workflow_uuid = %s"
    return [row[0] for row in conn.execute(query, [workflow_uuid])]


def raise_epochs(conn: psycopg.Connection, workflow_uuid: str, epoch: int) -> None:
    """Give a workflow's streams at a shard at least this epoch; workers of lower ones stop."""
    conn.execute(
        "UPDATE _tidegate.stream SET epoch = %(epoch)s"
        " WHERE workflow_uuid = %(uuid)s AND epoch < %(epoch)s",
        {"epoch": epoch, "uuid": workflow_uuid},
    )
