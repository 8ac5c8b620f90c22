"""A session of PostgreSQL: the driver's connection, with what the seam promises beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import Connection
from psycopg.rows import TupleRow

from tidegate.engines.postgres.markers import Markers
from tidegate.engines.postgres.sidecar.journal import JournalTable
from tidegate.engines.postgres.sidecar.post_copy import PostCopy
from tidegate.engines.postgres.sidecar.streams import StreamTable

if TYPE_CHECKING:
    from datetime import datetime


class PostgresSession(Connection[TupleRow]):
    """One connection; see :class:`tidegate.engines.seam.Session`."""

    @property
    def streams(self) -> StreamTable:
        return StreamTable(self)

    @property
    def actions(self) -> PostCopy:
        return PostCopy(self)

    @property
    def journal(self) -> JournalTable:
        return JournalTable(self)

    @property
    def log(self) -> Markers:
        return Markers(self)

    def clock(self) -> datetime:
        row = self.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        now: datetime = row[0]
        return now
