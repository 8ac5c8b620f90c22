"""A stream's row as a value; LSNs are integers.

The columns are those of ``engines/postgres/sidecar/schema.sql``; what may be done with a row is in
:mod:`tidegate.dataplane.streams`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tidegate.dataplane.model import FROZEN, Direction, StreamState
from tidegate.dataplane.stream_states import ACTIVE
from tidegate.engines.postgres.position import parse_lsn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

_LSNS = ("lsn", "h_lsn", "stop_lsn")
COLUMNS = (
    "id, workflow_uuid::text, workflow, direction, source_keyspace, source_shard, target_keyspace,"
    " target_shard, spec, state, message, epoch, system_identifier, timeline, lsn::text,"
    " h_lsn::text, stop_lsn::text, hold_until, source_commit_at, heartbeat_at, updated_at,"
    " rows_copied, bytes_copied, rows_applied, backends, accounts"
)


@dataclass(frozen=True)
class StreamRow:
    """One stream as its row says; LSNs as integers, ``None`` where not known yet."""

    id: int
    workflow_uuid: str
    workflow: str
    direction: Direction
    source_keyspace: str
    source_shard: str
    target_keyspace: str
    target_shard: str
    spec: dict[str, Any]
    state: StreamState
    message: str
    epoch: int
    system_identifier: str | None
    timeline: int | None
    lsn: int | None
    h_lsn: int | None
    stop_lsn: int | None
    hold_until: datetime | None
    source_commit_at: datetime | None
    heartbeat_at: datetime | None
    updated_at: datetime
    rows_copied: int
    bytes_copied: int
    rows_applied: int
    backends: tuple[int, ...]
    accounts: dict[str, list[int]] | None = None

    @property
    def active(self) -> bool:
        """A worker is to work on it."""
        return self.state in ACTIVE

    @property
    def frozen(self) -> bool:
        """Its traffic has been switched; it must not be started."""
        return self.state is StreamState.STOPPED and self.message == FROZEN

    @property
    def exact(self) -> bool:
        """The rows are exactly the source's at ``lsn``; before H some are newer or missing."""
        return self.lsn is not None and self.h_lsn is not None and self.lsn >= self.h_lsn

    @property
    def copied(self) -> bool:
        """The stream has passed its first H; a few rows may wait to be read again since."""
        return self.exact or self.accounts is not None


def stream_row(values: Sequence[Any]) -> StreamRow:
    """A row of :data:`COLUMNS` as a value."""
    names = [f.name for f in dataclasses.fields(StreamRow)]
    facts = dict(zip(names, values, strict=True))
    for name in _LSNS:
        facts[name] = None if facts[name] is None else parse_lsn(facts[name])
    facts["direction"] = Direction(facts["direction"])
    facts["state"] = StreamState(facts["state"])
    facts["backends"] = tuple(facts["backends"])
    return StreamRow(**facts)
