"""Plays of the scheduler's other units: schedulers, watermark, captures, owner, agent, splits."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from conformance.scheduling_cases import (
    BASE_PLAYS,
    Play,
    message,
    plain,
    same_messages,
    set_of,
    status_of,
)
from scheduling.make_span_world import Wire
from tidegate.scheduling.agent import Agent
from tidegate.scheduling.captures import Captures, CaptureState, CaptureStatus
from tidegate.scheduling.coordinator import Scheduler
from tidegate.scheduling.messages import Header, Heartbeat, Order, Report, order_epoch
from tidegate.scheduling.model import (
    PULLER_EGRESS,
    BarrierWithMin,
    CaptureInfo,
    Checkpoint,
    Liveness,
    SetState,
    Span,
    SpanStatus,
    Stats,
    TableState,
)
from tidegate.scheduling.placement import Burst, SpanTask, TaskKind
from tidegate.scheduling.reconciling import Reconciler
from tidegate.scheduling.replication import OrderKind, ReplicationSet, Send, rebuilt
from tidegate.scheduling.schedulers import Balance, Basic, Drain, Move, Rebalance, View
from tidegate.scheduling.settings import Settings
from tidegate.scheduling.splitting import span_count, split_by_count, split_by_writes
from tidegate.scheduling.watermark import Redo, progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.scenarios import Facts
    from tidegate.scheduling.messages import Message
    from tidegate.scheduling.placement import Task


def sets_of(facts: Facts) -> dict[Span, ReplicationSet]:
    return {Span(int(t)): set_of(Span(int(t)), plain(facts[t])) for t in facts}


def duration_ms(text: Any) -> int:
    if isinstance(text, int):
        return text
    units = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
    number = text.rstrip("hms")
    return int(float(number) * units[text[len(number) :]])


class SchedulerPlay(Play):
    """What every scheduler sees."""

    def __init__(self, given: Facts) -> None:
        super().__init__(given)
        self.captures = {c: CaptureState(given["captures"][c]) for c in given.get("captures", {})}
        self.sets = sets_of(given["sets"]) if "sets" in given else {}
        self.current = plain(given.get("current", []))
        self.owner = given.get("owner", "")
        self.tasks: list[Task] = []
        _ = given.get("random")

    def view(self, checkpoint: int = 0) -> View:
        tables = self.current or [span.table for span in self.sets]
        wanted = [Span(table) for table in tables]
        return View(checkpoint, wanted, self.captures, self.sets, self.owner)

    def single(self) -> list[SpanTask]:
        found: list[SpanTask] = []
        for task in self.tasks:
            found += task.tasks if isinstance(task, Burst) else [task]
        return found

    def op_set_captures(self, event: Facts) -> None:
        self.captures = {c: CaptureState(event["captures"][c]) for c in event["captures"]}

    def op_set_current(self, event: Facts) -> None:
        self.current = plain(event["current"])

    def op_set_sets(self, event: Facts) -> None:
        self.sets = sets_of(event["sets"])
        if "captures" in event:
            self.op_set_captures(event)

    def op_put_sets(self, event: Facts) -> None:
        self.sets |= sets_of(event["sets"])

    def op_patch_set(self, event: Facts) -> None:
        span = Span(event["table"])
        self.sets[span] = replace(self.sets[span], state=SetState(event["state"]))

    def op_patch_primary(self, event: Facts) -> None:
        span = Span(event["table"])
        data = {"state": self.sets[span].state, "primary": event["primary"]}
        self.sets[span] = set_of(span, data)

    def op_move_all(self, event: Facts) -> None:
        for span, found in self.sets.items():
            if found.primary == event["from"]:
                data = {"state": found.state, "primary": event["to"]}
                self.sets[span] = set_of(span, data)
        _ = event["from"], event["to"]

    def check_moves(self, wanted: int) -> None:
        assert [t.kind for t in self.single()].count(TaskKind.MOVE) == wanted, self.tasks

    def check_first_moved(self, wanted: int) -> None:
        assert self.single()[0].span.table == wanted

    def check_dest_counts(self, wanted: Facts) -> None:
        assert Counter(each.capture for each in self.single()) == plain(wanted)

    def check_contains(self, wanted: list[Any]) -> None:
        pairs = [plain(wanted)] if not isinstance(wanted[0], list) else plain(wanted)
        found = [[each.span.table, each.capture] for each in self.single()]
        assert all(pair in found for pair in pairs), found

    def check_bursts(self, wanted: int) -> None:
        assert len(self.tasks) == wanted


class BasicPlay(SchedulerPlay):
    def __init__(self, given: Facts) -> None:
        super().__init__(given)
        self.basic = Basic(given.get("batch", 50))

    def op_schedule(self, event: Facts) -> None:
        self.checkpoint = event.get("checkpoint", 0)
        self.tasks = self.basic.schedule(self.view(self.checkpoint))

    def _of(self, kind: TaskKind) -> list[SpanTask]:
        return [each for each in self.single() if each.kind is kind]

    def check_add(self, wanted: list[int]) -> None:
        assert [each.span.table for each in self._of(TaskKind.ADD)] == wanted

    def check_add_targets(self, wanted: list[str]) -> None:
        assert sorted({each.capture for each in self._of(TaskKind.ADD)}) == sorted(wanted)

    def check_remove(self, wanted: list[int]) -> None:
        assert [each.span.table for each in self._of(TaskKind.REMOVE)] == wanted

    def check_add_checkpoint(self, wanted: int) -> None:
        assert {each.checkpoint for each in self._of(TaskKind.ADD)} == {wanted}


class DrainPlay(SchedulerPlay):
    def __init__(self, given: Facts) -> None:
        super().__init__(given)
        self.drain = Drain(given.get("limit", given.get("batch", 10)))
        self.ok = False
        if "target" in given:
            self.drain.target = given["target"] or None

    def op_set_target(self, event: Facts) -> None:
        self.ok = self.drain.set_target(event["capture"])

    def op_schedule(self, _event: Facts) -> None:
        self.tasks = self.drain.schedule(self.view())

    def check_ok(self, wanted: bool) -> None:
        assert self.ok is wanted

    def check_target(self, wanted: str) -> None:
        assert (self.drain.target or "") == wanted


class BalancePlay(SchedulerPlay):
    now_ms = 10**9

    def __init__(self, given: Facts) -> None:
        super().__init__(given)
        self.limit = given.get("limit", given.get("max_task_concurrency", 100))
        self.balance = Balance(self.limit, duration_ms(given.get("interval", 0)))

    def op_set_interval(self, event: Facts) -> None:
        self.balance.interval_ms = duration_ms(event["interval"])

    def op_clear_force(self, _event: Facts) -> None:
        self.balance.is_forced = False

    def op_reset(self, event: Facts) -> None:
        self.limit = event.get("limit", self.limit)
        interval = duration_ms(event.get("interval", self.balance.interval_ms))
        self.balance = Balance(self.limit, interval)
        if "sets" in event:
            self.sets = sets_of(event["sets"])
        if "captures" in event:
            self.op_set_captures(event)

    def op_schedule(self, _event: Facts) -> None:
        self.tasks = self.balance.schedule(self.view(), self.now_ms)


class ManualPlay(SchedulerPlay):
    def __init__(self, given: Facts) -> None:
        super().__init__(given)
        self.move, self.rebalance = Move(), Rebalance()
        self.ok = False

    def op_request_move(self, event: Facts) -> None:
        self.ok = self.move.request(Span(event["table"]), event["dest"])

    def op_schedule_move(self, _event: Facts) -> None:
        self.tasks = self.move.schedule(self.view())

    def op_request_rebalance(self, _event: Facts) -> None:
        self.rebalance.is_requested = True

    def op_schedule_rebalance(self, _event: Facts) -> None:
        self.tasks = self.rebalance.schedule(self.view())

    def op_accept(self, _event: Facts) -> None:
        if any(isinstance(task, Burst) for task in self.tasks):
            self.rebalance.accepted()
        for task in self.tasks:
            self.move.accepted(task)

    def check_ok(self, wanted: bool) -> None:
        assert self.ok is wanted

    def check_pending(self, wanted: int) -> None:
        assert len(self.move.pending) == wanted

    def check_flag(self, wanted: bool) -> None:
        assert self.rebalance.is_requested is wanted


class WatermarkPlay(Play):
    def __init__(self, given: Facts) -> None:
        super().__init__(given)
        self.redo = given.get("redo", False)
        self.sets: dict[Span, ReplicationSet] = {}
        self.dropped: dict[Span, ReplicationSet] = {}
        for each in given.get("spans", []):
            data = plain(each)
            span = Span(data["table"])
            self._put(span, {data["capture"]: status_of(span, data)})

    def _put(self, span: Span, statuses: dict[str, SpanStatus]) -> None:
        made = rebuilt(span, 0, statuses)
        for status in statuses.values():  # as merged in whatever state it was reported
            made = made.with_progress(status)
        self.sets[span] = made

    def _statuses(self, span: Span, facts: Any) -> dict[str, SpanStatus]:
        if "state" in facts:
            return {facts.get("capture", "1"): status_of(span, facts)}
        return {capture: status_of(span, facts[capture]) for capture in facts}

    def op_put_span(self, event: Facts) -> None:
        span = Span(event["table"])
        self._put(span, self._statuses(span, event["statuses"]))

    def op_put_split(self, event: Facts) -> None:
        names = plain(event.get("parts", ["left", "right"]))
        assert set(names) == {"left", "right"}, names
        for name in names:
            span = self._part(event["table"], name)
            self._put(span, self._statuses(span, event["each"]))

    @staticmethod
    def _part(table: int, name: str) -> Span:
        return {"left": Span(table, "", "m"), "right": Span(table, "m", "")}[name]

    def op_drop_part(self, event: Facts) -> None:
        span = self._part(event["table"], event["part"])
        self.dropped[span] = self.sets.pop(span)

    def op_restore_part(self, event: Facts) -> None:
        span = self._part(event["table"], event["part"])
        self.sets[span] = self.dropped.pop(span)

    def op_drop_span(self, event: Facts) -> None:
        del self.sets[Span(event["table"])]

    def op_advance(self, event: Facts) -> None:
        barrier = event["barrier"]
        at = (
            BarrierWithMin.at(barrier)
            if isinstance(barrier, int)
            else BarrierWithMin(
                replace(BarrierWithMin.at(barrier["global"]).barrier),
                barrier["min_table"],
                barrier.get("redo", barrier["global"]),
            )
        )
        flushed = event.get("redo_flushed_resolved")
        assert (flushed is not None) is bool(self.redo), "redo and what it has flushed"
        redo = None if flushed is None else Redo(flushed)
        self.found = progress(plain(event["tables"]), self.sets, at, redo)

    def check_checkpoint(self, wanted: int) -> None:
        assert self.found.watermark.checkpoint == wanted

    def check_resolved(self, wanted: int) -> None:
        assert self.found.watermark.resolved == wanted

    def check_last_synced(self, wanted: int) -> None:
        assert self.found.watermark.last_synced == wanted

    def check_puller_resolved(self, wanted: Any) -> None:
        top = wanted in {"max", "MAX"}
        assert self.found.watermark.puller_resolved == ((1 << 64) - 1 if top else wanted)

    def check_cannot_proceed(self, wanted: bool) -> None:
        mark = self.found.watermark
        fields = {mark.checkpoint, mark.resolved, mark.last_synced, mark.puller_resolved}
        assert (fields == {0}) is wanted

    def check_outgoing_global_barrier(self, wanted: int) -> None:
        assert self.found.barrier.global_ts == wanted


class CapturesPlay(Play):
    def __init__(self, given: Facts) -> None:
        super().__init__(given)
        ticks = given.get("heartbeat_tick", 2)
        stats = given.get("collect_stats_tick", 200)
        self.captures = Captures(
            given.get("owner", ""), heartbeat_ticks=ticks, collect_stats_ticks=stats
        )
        self.number = 0
        self.beats: list[str] = []
        self.heartbeat_at: list[int] = []
        self.stats_at: list[int] = []
        self.lists: dict[str, list[int]] = {}
        self.changes: dict[str, Any] | None = None
        if "captures" in given:
            known = plain(given["captures"])
            for id_, state in known.items():
                self.captures.known[id_] = CaptureStatus(id_, state=CaptureState(state))
        self.sets = sets_of(given["sets"]) if "sets" in given else {}

    def op_alive(self, event: Facts) -> None:
        found = self.captures.update({c: CaptureInfo(c) for c in plain(event["captures"])})
        self.beats = list(found.joined)
        named = {"init": found.init, "removed": found.removed}
        self.changes = {
            key: {
                c: [s.table for s in spans]
                for c, spans in value.items()
                if spans or key == "removed"
            }
            for key, value in named.items()
            if value
        } or None

    def op_hb_resp(self, event: Facts) -> None:
        self.number += 1
        liveness = Liveness[event.get("liveness", "Alive").upper()]
        statuses = tuple(
            SpanStatus(Span(table), TableState.REPLICATING) for table in plain(event["tables"])
        )
        header = Header(1, 0, event.get("epoch", ""))
        self.captures.heard(
            Report(event["from"], "", header, self.number, statuses, liveness=liveness)
        )
        self.beats, self.changes = [], None

    def op_tick(self, event: Facts) -> None:
        for _ in range(event.get("times", 1)):
            beat = self.captures.tick()
            if beat.is_due:
                self.heartbeat_at.append(self.captures.ticks)
                self.beats = sorted(self.captures.known)
                self.lists = {
                    c: sorted(s.table for s, f in self.sets.items() if c in f.roles)  # type: ignore[misc]
                    for c in self.captures.known
                }
            if beat.collect_stats:
                self.stats_at.append(self.captures.ticks)

    def check_heartbeat_at(self, wanted: list[int]) -> None:
        assert self.heartbeat_at == wanted

    def check_collect_stats_at(self, wanted: list[int]) -> None:
        assert self.stats_at == wanted

    def check_span_list(self, wanted: Facts) -> None:
        for capture in wanted:
            assert self.lists[capture] == plain(wanted[capture])

    def check_heartbeats_to(self, wanted: list[str]) -> None:
        assert self.beats == wanted

    def check_all_initialized(self, wanted: bool) -> None:
        assert self.captures.is_initialized is wanted

    def check_changes(self, wanted: Any) -> None:
        assert self.changes == plain(wanted)

    def check_is_owner(self, wanted: list[str]) -> None:
        assert [c.id for c in self.captures.known.values() if c.is_owner] == wanted

    def check_capture_state(self, wanted: Facts) -> None:
        for capture in wanted:
            assert self.captures.known[capture].state == wanted[capture]


class OwnerPlay(Play):
    """The coordinator, over a wire of its own."""

    def __init__(self, given: Facts) -> None:
        super().__init__(given)
        self.wire = Wire()
        silent = given.get("heartbeats_disabled", False)
        settings = Settings(
            add_batch=given.get("add_batch", 50),
            heartbeat_ticks=10**9 if silent else 2,
            max_task_concurrency=given.get("max_task_concurrency", 10),
        )
        self.owner = given.get("owner", given.get("capture", ""))
        self.revision = given.get("owner_revision", 1)
        self.workflow_epoch = given.get("changefeed_epoch", 0)
        self.without = set(plain(given.get("peers_without", [])))
        self.supporting = set(plain(given.get("peers_supporting_changefeed_epoch", [])))
        self.scheduler = Scheduler(
            self.owner,
            self.revision,
            self.wire,
            workflow_epoch=self.workflow_epoch,
            settings=settings,
        )
        self.tables = plain(given.get("tables", []))
        self.number = 0
        self.checkpoint = 0
        self.returned: int | None = None
        self.kept: list[int] = []
        if "captures" in given:
            self._captures(plain(given["captures"]))
        for span, found in (sets_of(given["sets"]) if "sets" in given else {}).items():
            _ = span
            self.scheduler.placement.put(found)

    def _captures(self, states: dict[str, str]) -> None:
        known = {c: CaptureStatus(c, state=CaptureState(s)) for c, s in states.items()}
        self.scheduler.captures.known = known

    def op_set_captures(self, event: Facts) -> None:
        self._captures(plain(event["captures"]))

    def op_put_set(self, event: Facts) -> None:
        data = {k: plain(event[k]) for k in event if k not in {"op", "table", "note"}}
        self.scheduler.placement.put(set_of(Span(event["table"]), data))

    def op_drain(self, event: Facts) -> None:
        self.returned = self.scheduler.drain_capture(event["target"])

    def op_poll(self, event: Facts) -> None:
        self.wire.sent.clear()
        alive = {c: CaptureInfo(c) for c in plain(event["alive"])}
        barrier = event.get("barrier", 0)
        tables = plain(event.get("tables", self.tables))
        self.mark = self.scheduler.tick(
            event.get("checkpoint", self.checkpoint), tables, alive, BarrierWithMin.at(barrier)
        )

    def op_recv_hb_resp(self, event: Facts) -> None:
        self.number += 1
        statuses = []
        for row in plain(event["tables"]):
            table, state, checkpoint, resolved, synced, egress = row + [0] * (6 - len(row))
            stats = Stats({PULLER_EGRESS: Checkpoint(egress, egress)}) if egress else Stats()
            at = Checkpoint(checkpoint or 0, resolved or 0, synced or 0)
            statuses.append(SpanStatus(Span(table), TableState(state), at, stats, order=1 << 62))
        header = Header(self.revision, self.workflow_epoch, event.get("epoch", "e"))
        liveness = Liveness[event.get("liveness", "Alive").upper()]
        self.wire.inbox.append(
            Report(
                event["from"], self.owner, header, self.number, tuple(statuses), liveness=liveness
            )
        )

    def op_recv(self, event: Facts) -> None:
        self.kept = []
        for number, each in enumerate(event["messages"]):
            data = plain(each)
            known = {"from", "to", "owner_revision", "changefeed_epoch", "epoch", "kind", "note"}
            known |= {"type", "processor_epoch"}
            assert set(data) <= known, f"unknown parts of a message: {set(data) - known}"
            epoch = data.get("changefeed_epoch", 0)
            header = Header(data.get("owner_revision", self.revision), epoch, "e")
            report = Report(data["from"], data.get("to", self.owner), header, number + 1)
            if self.scheduler._accepts(report):
                self.kept.append(number)

    def check_kept_indexes(self, wanted: list[int]) -> None:
        assert self.kept == wanted

    def _messages(self) -> list[dict[str, Any]]:
        found = []
        for each in self.wire.sent:
            if isinstance(each, Order):
                found.append(message(each.span, Send(each.to, each.kind, each.checkpoint)))
            else:
                found.append({"to": each.to, "kind": "heartbeat"})
        return found

    def check_messages(self, wanted: list[Any]) -> None:
        same_messages(self._messages(), wanted, ordered=False)

    def check_messages_unordered(self, wanted: list[Any]) -> None:
        self.check_messages(wanted)

    def check_all_initialized(self, wanted: bool) -> None:
        assert self.scheduler.is_initialized is wanted

    def check_sets(self, wanted: int) -> None:
        assert len(self.scheduler.placement.sets) == wanted

    def check_returns(self, wanted: int) -> None:
        assert self.returned == wanted

    def check_drain_started(self, wanted: bool) -> None:
        assert (self.scheduler.drain.target is not None) is wanted

    def check_checkpoint(self, wanted: int) -> None:
        assert self.mark.checkpoint == wanted

    def check_resolved(self, wanted: int) -> None:
        assert self.mark.resolved == wanted

    def check_last_synced(self, wanted: int) -> None:
        assert self.mark.last_synced == wanted

    def check_puller_resolved(self, wanted: int) -> None:
        assert self.mark.puller_resolved == wanted

    def check_cannot_proceed(self, wanted: bool) -> None:
        assert self.mark.can_proceed is not wanted


class Steered:
    """An executor that answers as the case says."""

    def __init__(self) -> None:
        self.states: dict[Span, TableState] = {}
        self.answers: dict[str, Any] = {}

    def add_table_span(
        self, span: Span, checkpoint: Checkpoint, *, is_prepare: bool, epoch: int
    ) -> bool:
        _ = checkpoint, is_prepare, epoch
        if not self.answers.get("add", False):
            return False
        if self.states.get(span, TableState.ABSENT) in {TableState.ABSENT, TableState.STOPPED}:
            self.states[span] = TableState.PREPARING
        return True

    def is_add_table_span_finished(self, span: Span, *, is_prepare: bool) -> bool:
        done = bool(self.answers.get("add_finished", False))
        if done:
            self.states[span] = TableState.PREPARED if is_prepare else TableState.REPLICATING
        return done

    def remove_table_span(self, span: Span) -> bool:
        done = bool(self.answers.get("remove", False))
        if done:
            self.states[span] = TableState.STOPPING
        return done

    def is_remove_table_span_finished(self, span: Span) -> tuple[int, bool]:
        answer = self.answers.get("remove_finished", False)
        at, done = answer if isinstance(answer, list) else (0, bool(answer))
        if done:
            self.states.pop(span, None)
        return at, done

    def get_table_span_status(self, span: Span, *, collect_stats: bool) -> SpanStatus:
        _ = collect_stats
        return SpanStatus(span, self.states.get(span, TableState.ABSENT))


class AgentPlay(Play):
    def __init__(self, given: Facts) -> None:
        super().__init__(given)
        self.epoch = given.get("epoch", "epoch")
        self.steered, self.wire = Steered(), Wire()
        owner = given.get("owner")
        revision = given.get("owner_revision", 1)
        if isinstance(owner, dict) or (owner is not None and not isinstance(owner, str)):
            revision = owner.get("revision", owner.get("owner_revision", 1))
            owner = owner.get("id", owner.get("capture"))
        states = given.get("executor_states", {})
        self.steered.states = {Span(int(t)): TableState(states[t]) for t in states}
        self.owner, self.revision = owner or "owner", revision
        self.agent = Agent(
            given.get("capture", "agent"),
            self.epoch,
            self.steered,
            self.wire,
            workflow_epoch=given.get("changefeed_epoch", 0),
            running=list(self.steered.states),
            owner=(self.owner, revision),
        )
        if given.get("liveness", "Alive") == "Stopping":
            self.agent.stop()
        self.number = 0

    def _tick(self, event: Facts, *messages: Message) -> None:
        self.wire.sent.clear()
        if "executor" in event:
            self.steered.answers = plain(event["executor"])
        self.wire.inbox += messages
        self.agent.tick()

    def op_tick(self, event: Facts) -> None:
        self._tick(event)

    def op_dispatch(self, event: Facts) -> None:
        self.number += 1
        kind = OrderKind.REMOVE
        if event["kind"] == "add":
            kind = OrderKind.PREPARE if event["prepare"] else OrderKind.COMMIT
        assert event["kind"] in {"add", "remove"}
        epoch = order_epoch(self.revision, self.number)
        header = Header(
            event.get("owner_revision", self.revision), 0, event.get("epoch", self.epoch)
        )
        at = Checkpoint(event.get("checkpoint", 0), event.get("resolved", 0))
        sender = event.get("owner", self.owner)
        span = Span(event.get("table", 1))
        self._tick(event, Order(sender, self.agent.capture, header, span, kind, epoch, at))

    def op_heartbeat(self, event: Facts) -> None:
        header = Header(event.get("revision", self.revision), 0, event.get("epoch", ""))
        spans = tuple(Span(table) for table in plain(event.get("spans", [])))
        self._tick(
            event,
            Heartbeat(
                event.get("owner", self.owner),
                self.agent.capture,
                header,
                spans,
                is_stopping=event.get("is_stopping", False),
            ),
        )

    def op_inject_remove_task(self, event: Facts) -> None:
        span = Span(event["table"])
        self.number += 1
        known = self.agent._known[span]
        header = Header(self.revision, 0, self.epoch)
        known.order = order_epoch(self.revision, self.number)
        known.task = Order(
            self.owner, self.agent.capture, header, span, OrderKind.REMOVE, known.order
        )

    def op_set_liveness(self, event: Facts) -> None:
        wanted = Liveness[event["liveness"].upper()]
        if wanted is Liveness.STOPPING:
            self.agent.stop()

    def check_responses(self, wanted: list[Any]) -> None:
        found = [
            {
                "kind": "remove" if reply.kind is OrderKind.REMOVE else "add",
                "state": reply.status.state.value,
                "checkpoint": reply.status.checkpoint.checkpoint,
                "table": reply.status.span.table,
            }
            for reply in self.agent.replies
        ]
        same_messages(found, wanted)

    def check_tracked(self, wanted: bool) -> None:
        assert bool(self.agent.spans) is wanted

    def check_replied(self, wanted: bool) -> None:
        assert bool(self.wire.sent) is wanted

    def check_owner_revision(self, wanted: int) -> None:
        assert self.agent.owner is not None
        assert self.agent.owner[1] == wanted

    def _states(self) -> dict[str, str]:
        (report,) = self.wire.sent
        assert isinstance(report, Report)
        return {str(each.span.table): each.state.value for each in report.statuses}

    def check_reply_states(self, wanted: Facts) -> None:
        assert self._states() == plain(wanted)

    def check_reply_states_subset(self, wanted: Facts) -> None:
        assert plain(wanted).items() <= self._states().items()

    def check_liveness(self, wanted: str) -> None:
        assert self.agent.liveness is Liveness[wanted.upper()]


class SpansPlay(Play):
    """Reconciling and splitting."""

    def __init__(self, given: Facts) -> None:
        super().__init__(given)
        self.threshold = given.get("region_threshold", 0)
        self.captures = given.get("captures", 1)
        regions = plain(given.get("regions", {}))
        self.letters: dict[int, list[str]] = {int(t): r for t, r in regions.items()}
        self.default = given.get("regions_default", 1)
        self.reconciler = Reconciler(self._split)

    def _bounds(self, table: int) -> dict[str, tuple[str, str]]:
        names = self.letters[table]
        starts = ["", *names[1:]]
        return {n: (s, e) for n, s, e in zip(names, starts, [*names[1:], ""], strict=True)}

    def _split(self, table: Any) -> list[Span]:
        names = self.letters[table]
        counts = split_by_count(len(names), threshold=self.threshold, captures=self.captures)
        bounds, found, at = self._bounds(table), list[Span](), 0
        for count in counts:
            first, last = names[at], names[at + count - 1]
            found.append(Span(table, bounds[first][0], bounds[last][1]))
            at += count
        return found

    def _span(self, name: str) -> Span:
        parts = name.split("+")
        (table,) = (t for t, names in self.letters.items() if parts[0] in names)
        bounds = self._bounds(table)
        return Span(table, bounds[parts[0]][0], bounds[parts[-1]][1])

    def op_reconcile(self, event: Facts) -> None:
        sets = [self._span(name) for name in plain(event["sets"])]
        self.spans = self.reconciler.wanted(plain(event["tables"]), sets)

    def op_reconcile_new_owner(self, event: Facts) -> None:
        self.reconciler = Reconciler(self._split)
        self.op_reconcile(event)

    def check_spans(self, wanted: Any) -> None:
        if isinstance(wanted, int):
            assert len(self.counts) == wanted
        else:
            assert self.spans == [self._span(name) for name in wanted]

    def op_span_count(self, event: Facts) -> None:
        self.count = span_count(event["regions"], event["captures"])

    def check_count(self, wanted: int) -> None:
        assert self.count == wanted

    def op_split_by_count(self, event: Facts) -> None:
        regions = event.get("regions", self.default)
        self.keys = [0] * regions
        self.counts = split_by_count(
            regions,
            threshold=event.get("threshold", self.threshold),
            captures=event.get("captures", self.captures),
        )
        assert sum(self.counts) == regions, "a region was lost"

    def op_split_by_write(self, event: Facts) -> None:
        if "keys" in event:
            self.keys = plain(event["keys"])
        else:
            self.keys = [event["keys_uniform"]] * event.get("regions", self.default)
        threshold = event["threshold"]
        self.counts = split_by_writes(self.keys, threshold=threshold, wanted=event["want"])
        assert sum(self.counts) == len(self.keys), "a region was lost"

    def check_regions_per_span(self, wanted: list[int]) -> None:
        low, high = wanted
        assert low <= min(self.counts), self.counts
        assert max(self.counts) <= high, self.counts

    def check_region_counts(self, wanted: list[int]) -> None:
        assert self.counts == wanted

    def check_weights(self, wanted: list[int]) -> None:
        found, at = [], 0
        for count in self.counts:
            found.append(sum(key + 1 for key in self.keys[at : at + count]))
            at += count
        assert found == wanted


PLAYS: Final[dict[str, Callable[[Facts], Play]]] = {
    **BASE_PLAYS,
    "watermark": WatermarkPlay,
    "capture_manager": CapturesPlay,
    "scheduler.basic": BasicPlay,
    "scheduler.drain": DrainPlay,
    "scheduler.balance": BalancePlay,
    "scheduler.manual": ManualPlay,
    "coordinator": OwnerPlay,
    "agent": AgentPlay,
    "keyspan": SpansPlay,
}
