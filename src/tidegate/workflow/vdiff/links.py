"""The sessions of one run of a VDiff: opened together, used moment after moment.

Opening a session costs more than any step of a moment, so nothing is opened while streams are held.
Each source has three: one that keeps the snapshot, one that watches and writes the marker, and one
that makes the slot; that one is used once, because closing it drops the slot. Each target has one
that keeps the snapshot, and one that controls, which belongs to the caller.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psycopg
from psycopg import pq

from tidegate.engines.postgres.connection import SNAPSHOT_IDLE_S, connect

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import ThreadPoolExecutor

    from tidegate.dataplane.model import SpanSpec, TargetSpec
    from tidegate.engines.postgres.session import PostgresSession
    from tidegate.topology.connections import Endpoint

type Session = PostgresSession

CANCEL_TIMEOUT_S = 5.0

SOURCE, WATCH, SLOT, TARGET = "source", "watch", "slot", "target"


def targets_of(spans: Sequence[SpanSpec]) -> dict[str, TargetSpec]:
    """Every target shard of some spans, by name."""
    found = {target.shard: target for span in spans for target in span.targets}
    return dict(sorted(found.items()))


class Links:
    """See the module's docstring; close it when the run ends."""

    def __init__(self, controls: Mapping[str, Session], pool: ThreadPoolExecutor) -> None:
        self.controls = controls  # of the target shards, by name
        self.pool = pool
        self._sessions: dict[tuple[str, str], Session] = {}

    def open(self, spans: Sequence[SpanSpec]) -> None:
        """Open, all at once, what a moment of these spans needs and is not open.

        Raises:
            ConnectError, AuthenticationError: as :func:`connect`.
        """
        wanted = [((kind, s.span_id), s.source) for kind in (SOURCE, WATCH, SLOT) for s in spans]
        wanted += [((TARGET, name), t.endpoint) for name, t in targets_of(spans).items()]

        def ensure(one: tuple[tuple[str, str], Endpoint]) -> None:
            key, endpoint = one
            if (found := self._sessions.get(key)) is None or found.closed:
                is_slot = key[0] == SLOT
                purpose = "snapshot" if is_slot else "vdiff"
                self._sessions[key] = connect(
                    endpoint,
                    purpose=purpose,
                    replication=is_slot,
                    idle_transaction_s=SNAPSHOT_IDLE_S,
                )

        list(self.pool.map(ensure, wanted))

    def source(self, span: SpanSpec) -> Session:
        """Keeps the snapshot of a source."""
        return self._sessions[SOURCE, span.span_id]

    def watch(self, span: SpanSpec) -> Session:
        """Looks at a source; in autocommit."""
        return self._sessions[WATCH, span.span_id]

    def take_slot(self, span: SpanSpec) -> Session:
        """A walsender's session; the caller closes it."""
        return self._sessions.pop((SLOT, span.span_id))

    def target(self, shard: str) -> Session:
        """Keeps the snapshot of a target."""
        return self._sessions[TARGET, shard]

    def end_snapshots(self) -> None:
        """End the transactions; a session that cannot is closed."""
        for (kind, _), session in self._sessions.items():
            if kind not in {SOURCE, TARGET} or session.closed:
                continue
            if session.info.transaction_status is pq.TransactionStatus.IDLE:
                continue
            try:
                if session.info.transaction_status is pq.TransactionStatus.ACTIVE:
                    session.cancel_safe(timeout=CANCEL_TIMEOUT_S)  # another thread's query
                session.rollback()
            except psycopg.Error:
                session.close()

    def close(self) -> None:
        """Close all but the controls."""
        for session in self._sessions.values():
            with contextlib.suppress(psycopg.Error):
                session.close()
        self._sessions.clear()
