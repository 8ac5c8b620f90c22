"""Performs the steps of a switch of writes; :mod:`tidegate.workflow.switch` says why in that order.

Decides how each step is done and undone so that doing it twice is the same as once. Everything that
touches a fence does so only while no later switch is known at that shard, and everything before the
journal only while this switch has not been closed by somebody else.
"""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tidegate.dataplane import accounts, streams
from tidegate.dataplane.model import Direction, StreamState
from tidegate.engines.postgres import fence, publication, slots
from tidegate.engines.postgres.connection import server_facts
from tidegate.engines.postgres.position import Position, format_lsn
from tidegate.engines.postgres.sidecar import installation as sidecar
from tidegate.engines.seam import StreamFacts, SwitchKey
from tidegate.errors import NotFoundError, WaitTimeoutError
from tidegate.operations.plan import Plan, PlanStep, StepTable, Zone
from tidegate.topology.names import TableName
from tidegate.workflow import (
    objects,
    open_writers,
    recheck,
    routers,
    spans,
    switch,
    switch_journal,
    switch_sequences,
    traffic,
)
from tidegate.workflow.denying import Denial, next_denial
from tidegate.workflow.model import StreamRef, opposite, replication_name
from tidegate.workflow.pause import REMEMBERED, Pause, reserve_s
from tidegate.workflow.sessions import hurried

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidegate.dataplane.stream_rows import StreamRow
    from tidegate.engines.postgres.session import PostgresSession
    from tidegate.topology.model import Snapshot
    from tidegate.workflow.model import Workflow
    from tidegate.workflow.requests import SwitchRequest
    from tidegate.workflow.work import Work

#: How long the fence waits for transactions that began before it; then it is lifted for a while.
DRAIN_S = 1.0
#: How long streams stay at S if nobody comes to say what is next.
HOLD_S = 600.0


@dataclass
class SwitchActions:
    """The steps of one switch of writes."""

    work: Work
    plan: Plan
    direction: Direction
    request: SwitchRequest
    markers: dict[str, int] = field(default_factory=dict)
    positions: dict[str, Position] = field(default_factory=dict)
    facts: dict[str, tuple[str, int]] = field(default_factory=dict)
    decided: bool = False
    staying: switch_sequences.Staying = ()

    def __post_init__(self) -> None:
        workflow = self.work.workflow
        self.closing_keyspace, self.opening_keyspace = workflow.keyspaces(self.direction)
        self.closing, self.opening = workflow.shards(self.direction)
        self.closing_side: fence.Side = (
            "source" if self.direction is Direction.FORWARD else "target"
        )
        self.opening_side: fence.Side = (
            "target" if self.direction is Direction.FORWARD else "source"
        )
        self.back = opposite(self.direction)
        self.uuid = workflow.uuid
        self.tables = tuple(map(TableName.parse, workflow.tables))
        self.pause = Pause(self.request.max_pause_s)
        do: dict[str, Callable[[], None]] = {
            switch.PUBLISHED: self._publish,
            switch.SLOTTED: self._make_slots,
            switch.ARMED: self._arm,
            switch.ANNOUNCED: self._announce,
            switch.CAUGHT_UP: self._catch_up,
            switch.DENIED: self._deny,
            switch.HELD: self._hold,
            switch.RAISED: self._raise_sequences,
            switch.PREPARED: self._prepare_way_back,
            switch.JOURNALED: self._journal,
            switch.OPENED: self._open,
            switch.ROUTED: self._route,
            switch.RETURNING: self._start_way_back,
            switch.FROZEN: self._freeze,
        }
        undo: dict[str, Callable[[], None]] = {
            switch.PUBLISHED: self._drop_publications,
            switch.SLOTTED: self._drop_slots,
            switch.ANNOUNCED: self._withdraw,
            switch.DENIED: self._lift_closing,
            switch.HELD: self._release,
            switch.PREPARED: self._delete_way_back,
        }
        self._table = StepTable(self.plan, do, undo)

    @property
    def key(self) -> SwitchKey:
        """Which switch this is, as its journal names it."""
        return SwitchKey(self.uuid, str(self.direction), self.work.operation.number)

    @property
    def token(self) -> str:
        """What only this process and its record know."""
        return str(self.work.operation.notes["token"])

    def do(self, step: PlanStep) -> None:
        """Perform a step; in the pause only while there is time left."""
        if step.in_pause and step.zone is Zone.BEFORE and step.name != switch.DENIED:
            self._left_s()
        if step.name in {switch.RETURNING, switch.FROZEN}:
            self.work.locks.confirm()
        self._table.do[step.name]()

    def undo(self, step: PlanStep) -> None:
        """Take a step back.

        Whoever lost the leases may meet the objects of a later switch under the same names: it
        lifts its own fence, if that is the latest, and leaves the rest to the leases' new holder.
        """
        if step.name != switch.DENIED:
            self.work.locks.confirm()
        with self.work.letting_go(step.name == switch.DENIED):
            self._table.undo[step.name]()

    def point_reached(self) -> bool:
        """Whether a journal of this switch is on any source; after this nobody else writes one."""
        self._at_closing(self._install)
        self.decided = switch_journal.close_all(
            self.work.sessions, self.closing_keyspace, self.closing, self.key
        )
        return self.decided

    # -- before the pause

    def _publish(self) -> None:
        self._at_opening_sources(self._publish_one)

    def _publish_one(self, shard: str, session: PostgresSession) -> None:
        """A left-over of an earlier switch may publish other tables: it goes first."""
        name = replication_name(self.work.workflow, self.back, shard)
        rules = spans.table_rules(self.work.snapshot, self.work.workflow, self.back, shard)
        slots.drop(session, name)
        publication.drop(session, name)
        publication.create(session, name, [TableName.parse(rule.table) for rule in rules])

    def _make_slots(self) -> None:
        self._at_opening_sources(self._make_slot)

    def _make_slot(self, shard: str, session: PostgresSession) -> None:
        name = replication_name(self.work.workflow, self.back, shard)
        slots.drop(session, name)
        endpoint = self.work.sessions.endpoint(self.opening_keyspace, shard)
        mark = self.work.sessions.mark
        slots.create(endpoint, name, timeout_s=self.request.timeout_s, mark=mark)

    def _arm(self) -> None:
        self._at_closing(self._install)
        self._at_closing(self._arm_one)

    def _install(self, _shard: str, session: PostgresSession) -> None:
        """Where the closing side lost the schema, or has one of an older release, it gets it."""
        sidecar.install(session, objects.user_of(self.work.workflow))

    def _arm_one(self, _shard: str, session: PostgresSession) -> None:
        """A fence that stands and is open is left alone."""
        now = fence.state(session, self.uuid, self.closing_side)
        if now is None or now.unprotected or now.denying or set(now.tables) != set(self.tables):
            fence.arm(
                session,
                self.uuid,
                self.closing_side,
                self.tables,
                workflow=self.work.workflow.name,
                denying=False,
                timeout_s=self.request.timeout_s,
            )

    def _announce(self) -> None:
        self._at_closing(lambda _s, session: session.journal.announce(self.key, self.token))

    def _catch_up(self) -> None:
        """Let the streams reach a marker, and learn what the pause will need."""
        deadline = time.monotonic() + self.request.timeout_s
        self._mark("before")
        self._wait_streams(lambda: deadline - time.monotonic(), exact=False)
        self._at_closing(lambda s, session: self._wait_holders(s, session, deadline))
        found = self._at_opening(lambda _s, session: server_facts(session))
        self.facts = {s: (f.system_identifier, f.timeline) for s, f in found.items()}
        self._read_staying()
        if self.request.enable_reverse_replication:
            self._at_closing(self._delete_way_back_at)
        self._look_again()
        if not self.request.ignore_routers:
            cluster = self.work.cluster
            routers.require_answering(cluster.routers, cluster.topology.revision())
        took_s = self.work.cluster.store.durations(switch.TAIL, REMEMBERED)
        self.pause.reserve_s = reserve_s(took_s, self.request.max_pause_s)
        self.work.locks.confirm()

    def _look_again(self) -> None:
        """What was waited for so far may have taken long: nothing is fenced on an old look."""
        recheck.require_unchanged(self.work, recheck.verb_of(self.direction), self.direction)

    # -- the pause

    def _deny(self) -> None:
        """Refuse writes and wait for those that are open; never longer than :data:`DRAIN_S`.

        A transaction that is in the way longer is not waited for behind the fence: see
        :mod:`tidegate.workflow.denying`.
        """
        deadline = time.monotonic() + self.request.timeout_s
        drain_s = min(DRAIN_S, self.request.max_pause_s / 2)
        while True:
            self._at_closing(lambda s, session: self._wait_holders(s, session, deadline))
            self.pause.begin()
            self._at_closing(self._deny_one)
            late = self._drain(drain_s)
            if late is not None:
                self._lift_closing()
            match next_denial((), late is None, time.monotonic(), deadline):
                case Denial.DONE:
                    return
                case Denial.GIVE_UP:
                    assert late is not None, "a fence that has drained is done"
                    raise late

    def _drain(self, timeout_s: float) -> WaitTimeoutError | None:
        """Wait for the transactions that began before the fence; what names those still open."""
        try:
            self._at_closing(
                lambda _s, c: fence.drain(c, self.uuid, self.closing_side, timeout_s=timeout_s)
            )
        except WaitTimeoutError as late:
            return late
        return None

    def _deny_one(self, _shard: str, session: PostgresSession) -> None:
        with session.journal.latest(self.key, token=self.token):
            fence.deny(session, self.uuid, self.closing_side)

    def _wait_holders(self, shard: str, session: PostgresSession, deadline: float) -> None:
        """Wait until nobody has held a write lock for long; writers go on meanwhile."""
        open_writers.await_end(session, self.tables, f"{self.closing_keyspace}/{shard}", deadline)

    def _hold(self) -> None:
        """Bring the streams to where the fence stands, and keep them there.

        Nothing but markers is written behind the fence: a row that waits is read as it is at S, and
        a stream that is exact beyond S is exact at S. A worker that stands still inside a
        transaction must not make writers wait with it.
        """
        self._mark("fence")
        self._wait_streams(lambda: min(self._left_s(), self.request.timeout_s))
        held = self._at_opening(self._hold_at)
        accounts.require_even_spans(row for found in held.values() for row in found)

    def _hold_at(self, _shard: str, session: PostgresSession) -> list[StreamRow]:
        with hurried(session, self._left_s()):
            rows = streams.read_streams(session, self.uuid, self.direction)
            streams.hold(session, [row.id for row in rows], HOLD_S)
        return rows

    def _raise_sequences(self) -> None:
        """T comes after the last row of the streams and before the first of the application."""
        found = self._at_opening(
            lambda _s, session: streams.emit_marker(session, f"{self.uuid}:{self.key.ordinal}:T")
        )
        self.positions = {s: Position(*self.facts[s], lsn) for s, lsn in found.items()}
        switch_sequences.raise_opening(
            self.work,
            closing=(self.closing_keyspace, self.closing),
            opening=(self.opening_keyspace, self.opening),
            tables=self.tables,
            staying=self.staying,
        )

    def _read_staying(self) -> None:
        moving = {*self.closing, *self.opening}
        self.staying = switch_sequences.read_staying(
            self.work, self.opening_keyspace, moving, self.tables
        )

    def _prepare_way_back(self) -> None:
        self._at_closing(self._insert_way_back)

    def _insert_way_back(self, shard: str, session: PostgresSession) -> None:
        for source in self._way_back_sources(shard):
            self._insert_stream(session, source, shard, self.positions[source])

    def _journal(self) -> None:
        """Write it where it is missing; the leases are confirmed at the last moment before."""
        if not self.decided:
            self._left_s()
            self.work.locks.prove()
        switch_journal.write_all(
            self.work.sessions,
            self.closing_keyspace,
            self.closing,
            self.key,
            body=self._journal_body(),
            token=None if self.decided else self.token,
        )

    def _journal_body(self) -> dict[str, Any]:
        """What the switch was; taken from the first journal when another process wrote it."""
        if self.decided:
            return switch_journal.found_body(
                self.work.sessions, self.closing_keyspace, self.closing, self.key
            )
        return {
            "workflow": self.work.workflow.name,
            "keyspace": self.work.workflow.target_keyspace,
            "type": str(self.work.workflow.type),
            "tables": list(self.work.workflow.tables),
            "participants": [f"{self.closing_keyspace}/{s}" for s in sorted(self.closing)],
            "targets": [f"{self.opening_keyspace}/{s}" for s in sorted(self.opening)],
            "stopped_at": {s: format_lsn(lsn) for s, lsn in sorted(self.markers.items())},
            "continues_at": {s: p.to_json() for s, p in sorted(self.positions.items())},
            "way_back": self.request.enable_reverse_replication,
        }

    # -- after the journal

    def _open(self) -> None:
        self._at_opening(lambda _s, session: self._lift(session, self.opening_side))

    def _route(self) -> None:
        """The closing side is not asked: were it gone now, the application must not wait for it."""
        to_target = self.direction is Direction.FORWARD

        def change(snapshot: Snapshot) -> Snapshot:
            return traffic.with_writes_switched(snapshot, self.work.workflow, to_target=to_target)

        def record(workflow: Workflow) -> Workflow:
            took_s = self.pause.took_s
            if took_s is None:
                return workflow
            return replace(workflow, last_pause_ms=round(took_s * 1000.0, 1))

        self.work.change_topology(change, record)

    def _way_back_refs(self) -> tuple[StreamRef, ...]:
        """The streams of the way back as they are at their shards."""
        found = self._at_closing(
            lambda _s, session: streams.read_streams(session, self.uuid, self.back)
        )
        return tuple(
            sorted(
                StreamRef(self.back, row.source_shard, row.target_shard, row.id)
                for rows in found.values()
                for row in rows
            )
        )

    def _start_way_back(self) -> None:
        refs = self._way_back_refs()
        for ref in refs:
            session = self.work.sessions.get(self.closing_keyspace, ref.target_shard)
            streams.start(session, ref.stream_id)
        self.work.save(
            lambda w: w.with_streams(self.back, refs).with_wanted(self.back, wanted=True)
        )

    def _freeze(self) -> None:
        for shard, refs in self._streams_by_target().items():
            session = self.work.sessions.get(self.opening_keyspace, shard)
            for ref in refs:
                streams.freeze(session, ref.stream_id)
        self.work.save(lambda w: w.with_wanted(self.direction, wanted=False))
        self._at_closing(self._drop_replication)

    def _drop_replication(self, shard: str, session: PostgresSession) -> None:
        name = replication_name(self.work.workflow, self.direction, shard)
        slots.drop(session, name)
        publication.drop(session, name)

    # -- taking back

    def _lift_closing(self) -> None:
        self._at_closing(lambda _s, session: self._lift(session, self.closing_side))

    def _lift(self, session: PostgresSession, side: fence.Side) -> None:
        """A later switch may have raised the fence again; then it is not ours to lift."""
        with session.journal.latest(self.key), suppress(NotFoundError):
            fence.lift(session, self.uuid, side)

    def _release(self) -> None:
        for shard, refs in self._streams_by_target().items():
            session = self.work.sessions.get(self.opening_keyspace, shard)
            streams.release(session, [ref.stream_id for ref in refs])

    def _withdraw(self) -> None:
        self._at_closing(lambda _s, session: session.journal.close(self.key))

    def _delete_way_back(self) -> None:
        self._at_closing(self._delete_way_back_at)

    def _delete_way_back_at(self, _shard: str, session: PostgresSession) -> None:
        streams.delete_streams(session, self.uuid, self.back)

    def _drop_slots(self) -> None:
        self._at_opening_sources(
            lambda s, session: slots.drop(
                session, replication_name(self.work.workflow, self.back, s)
            )
        )

    def _drop_publications(self) -> None:
        self._at_opening_sources(
            lambda s, session: publication.drop(
                session, replication_name(self.work.workflow, self.back, s)
            )
        )

    # -- where things are

    def _mark(self, name: str) -> None:
        self.markers = self._at_closing(
            lambda _s, session: streams.emit_marker(
                session, f"{self.uuid}:{self.key.ordinal}:{name}"
            )
        )

    def _wait_streams(self, left_s: Callable[[], float], *, exact: bool = True) -> None:
        def wait(shard: str, session: PostgresSession) -> None:
            for ref in self._streams_by_target()[shard]:
                bound = self.markers[ref.source_shard]
                timeout_s = max(0.0, left_s())
                streams.wait_position(session, ref.stream_id, bound, timeout_s, exact=exact)

        self.work.sessions.each(self.opening_keyspace, self._streams_by_target(), wait)

    def _left_s(self) -> float:
        """How much of the pause is left before the journal."""
        return self.pause.left_s(self.request.timeout_s)

    def _streams_by_target(self) -> dict[str, list[StreamRef]]:
        found: dict[str, list[StreamRef]] = {}
        for ref in self.work.workflow.streams_of(self.direction):
            found.setdefault(ref.target_shard, []).append(ref)
        return found

    def _way_back_sources(self, target_shard: str) -> list[str]:
        pairs = spans.stream_pairs(self.work.snapshot, self.work.workflow, self.back)
        return [source for source, target in pairs if target == target_shard]

    def _insert_stream(
        self, session: PostgresSession, source: str, target: str, position: Position
    ) -> int:
        return streams.insert_stream(
            session,
            StreamFacts(
                workflow_uuid=self.uuid,
                workflow=self.work.workflow.name,
                direction=self.back,
                source_keyspace=self.opening_keyspace,
                source_shard=source,
                target_keyspace=self.closing_keyspace,
                target_shard=target,
                state=StreamState.STOPPED,
                message="prepared for the way back",
            ),
            position,
        )

    def _at_closing[T](self, what: Callable[[str, PostgresSession], T]) -> dict[str, T]:
        return self.work.sessions.each(self.closing_keyspace, sorted(self.closing), what)

    def _at_opening[T](self, what: Callable[[str, PostgresSession], T]) -> dict[str, T]:
        return self.work.sessions.each(self.opening_keyspace, sorted(self.opening), what)

    def _at_opening_sources[T](self, what: Callable[[str, PostgresSession], T]) -> dict[str, T]:
        shards = spans.source_shards(self.work.snapshot, self.work.workflow, self.back)
        return self.work.sessions.each(self.opening_keyspace, shards, what)


def new_token() -> str:
    """What tells one attempt of a switch from another."""
    return secrets.token_hex(8)
