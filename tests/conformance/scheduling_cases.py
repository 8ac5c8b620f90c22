"""Cases of the table-span scheduler: each names a unit, what happens to it, what must hold then.

A case is run by the play of its component. An operation, a field or a check that the play does not
know fails the case. Numbers of orders and reports, which the cases do not have, are given in the
order of the events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from conformance.scenarios import Facts, _within, _wrapped
from tidegate.scheduling.model import (
    PULLER_EGRESS,
    Checkpoint,
    MultiplePrimaryError,
    Role,
    SetState,
    Span,
    SpanStatus,
    Stats,
    TableState,
)
from tidegate.scheduling.placement import Burst, Placement, SpanTask, TaskKind
from tidegate.scheduling.replication import OrderKind, ReplicationSet, Send, rebuilt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tidegate.scheduling.placement import Sends, Task

HEAD: Final = frozenset(
    {"id", "component", "source_test", "derived_from", "title", "given", "events", "expect", "note"}
)


def plain(value: Any) -> Any:
    """The JSON behind facts; everything in it counts as read."""
    if isinstance(value, Facts):
        return {key: plain(value[key]) for key in value}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value


def run(case: dict[str, Any]) -> None:
    from conformance.scheduling_plays import PLAYS

    assert set(case) <= HEAD, f"unknown parts: {set(case) - HEAD}"
    given = Facts(case.get("given", {}), "given.")
    play: Play = PLAYS[case["component"]](given)
    expected = _wrapped(case["expect"], "expect.")
    events = _wrapped(case["events"], "events.")
    assert all(0 <= each["after"] < len(events) for each in expected)
    for number, event in enumerate(events):
        wanted = [each for each in expected if each["after"] == number]
        play.error = None
        try:
            getattr(play, f"op_{event['op']}")(event)
        except MultiplePrimaryError as error:
            if not any("error" in each for each in wanted):
                raise AssertionError(str(error)) from error
            play.error = "multiple_primary"
        _ = event.get("note")
        play.after(number)
        for each in wanted:
            for key in each:
                if key not in {"after", "note"}:
                    getattr(play, f"check_{key}")(each[key])
            _ = each.get("note")
    _ = given.get("note")
    unread = given.unread()
    for facts in (*_within(events), *_within(expected)):
        unread += facts.unread()
    assert not unread, f"unknown in case {case['id']}: {unread}"


class Play:
    """What all plays have."""

    error: str | None = None

    def __init__(self, given: Facts) -> None:
        self.given = given

    def after(self, number: int) -> None:
        """An event has happened."""

    def check_error(self, wanted: str) -> None:
        assert self.error == wanted


def checkpoint_of(data: Mapping[str, Any]) -> Checkpoint:
    return Checkpoint(
        data.get("checkpoint", 0), data.get("resolved", 0), data.get("last_synced", 0)
    )


def status_of(span: Span, facts: Facts | dict[str, Any]) -> SpanStatus:
    data = plain(facts) if isinstance(facts, Facts) else facts
    known = {"state", "checkpoint", "resolved", "last_synced", "puller_egress_resolved", "from"}
    known |= {"op", "table", "capture", "note", "puller_egress"}
    assert set(data) <= known, f"unknown parts of a status: {set(data) - known}"
    egress = data.get("puller_egress_resolved", data.get("puller_egress"))
    stats = Stats() if egress is None else Stats({PULLER_EGRESS: Checkpoint(egress, egress)})
    return SpanStatus(span, TableState(data["state"]), checkpoint_of(data), stats)


def set_of(span: Span, data: Mapping[str, Any]) -> ReplicationSet:
    """A set put into a state by a test, without what leads there."""
    assert set(data) <= {"state", "primary", "captures", "checkpoint", "resolved"}, data
    roles = {capture: Role(role) for capture, role in (data.get("captures") or {}).items()}
    if data.get("primary"):
        roles[data["primary"]] = Role.PRIMARY
    state = SetState(data.get("state", "Replicating"))
    return ReplicationSet(span, checkpoint_of(data), state, roles)


def message(span: Span, send: Send) -> dict[str, Any]:
    """An order as the cases write it."""
    if send.kind is OrderKind.REMOVE:
        return {"to": send.to, "kind": "remove", "table": span.table}
    return {
        "to": send.to,
        "kind": "add",
        "prepare": send.kind is OrderKind.PREPARE,
        "checkpoint": send.checkpoint.checkpoint,
        "resolved": send.checkpoint.resolved,
        "table": span.table,
    }


def same_messages(found: list[dict[str, Any]], wanted: list[Any], *, ordered: bool = True) -> None:
    """Messages are what is wanted, in the fields that are named."""
    assert len(found) == len(wanted), f"{found} instead of {plain(wanted)}"
    left = list(found)
    for each in plain(wanted):
        place = next(
            (n for n, one in enumerate(left) if all(one.get(k) == v for k, v in each.items())), None
        )
        assert place is not None, f"{each} not in {left}"
        assert place == 0 or not ordered, f"{each} is not the next of {left}"
        del left[place]


class SetPlay(Play):
    """One replication set."""

    span = Span(1)

    def __init__(self, given: Facts) -> None:
        super().__init__(given)
        self.affected = False
        self.sends: tuple[Send, ...] = ()
        self.all_sends: list[Send] = []
        self.history: list[ReplicationSet] = []
        self.found = ReplicationSet.new(self.span, 0)
        if "statuses" in given:
            self.op_build(given)
        self.sends = ()

    def after(self, number: int) -> None:
        _ = number
        self.history.append(self.found)
        self.all_sends += self.sends

    def op_build(self, event: Facts) -> None:
        statuses = {c: status_of(self.span, event["statuses"][c]) for c in event["statuses"]}
        self.found, self.sends = rebuilt(self.span, event.get("start", 0), statuses), ()

    def op_restore(self, event: Facts) -> None:
        self.found, self.sends = self.history[event["to_after"]], ()

    def op_force(self, event: Facts) -> None:
        data = {key: plain(event[key]) for key in event if key not in {"op", "note"}}
        merged = {"state": self.found.state, "captures": dict(self.found.roles), **data}
        made = set_of(self.span, merged)
        at = self.found.checkpoint if "checkpoint" not in data else made.checkpoint
        self.found, self.sends = ReplicationSet(self.span, at, made.state, made.roles), ()

    def op_add(self, event: Facts) -> None:
        self.found, self.sends = self.found.add(event["capture"])

    def op_move(self, event: Facts) -> None:
        self.found, self.sends = self.found.move(event["dest"])

    def op_remove(self, _event: Facts) -> None:
        self.found, self.sends = self.found.remove()

    def op_status(self, event: Facts) -> None:
        self.sends = ()
        self.found, self.sends = self.found.reported(event["from"], status_of(self.span, event))

    def op_capture_down(self, event: Facts) -> None:
        self.affected = event["capture"] in self.found.roles
        self.found, self.sends = self.found.capture_down(event["capture"])

    def check_state(self, wanted: str) -> None:
        assert self.found.state == wanted

    def check_state_in(self, wanted: list[str]) -> None:
        assert self.found.state in wanted

    def check_primary(self, wanted: str) -> None:
        assert (self.found.primary or "") == wanted

    def check_captures(self, wanted: Facts) -> None:
        assert dict(self.found.roles) == plain(wanted)

    def check_set_checkpoint(self, wanted: Facts) -> None:
        for key in wanted:
            assert getattr(self.found.checkpoint, key) == wanted[key]

    def check_messages(self, wanted: list[Any]) -> None:
        same_messages([message(self.span, send) for send in self.sends], wanted)

    def check_messages_unordered(self, wanted: list[Any]) -> None:
        found = [message(self.span, send) for send in self.sends]
        same_messages(found, wanted, ordered=False)

    def check_never_message(self, wanted: Any) -> None:
        ruled_out = {"kind": wanted} if isinstance(wanted, str) else plain(wanted)
        for send in self.all_sends:
            found = message(self.span, send)
            assert not all(found.get(key) == value for key, value in ruled_out.items()), found

    def check_removed(self, wanted: bool) -> None:
        assert self.found.is_removed is wanted

    def check_forgotten_by_manager(self, wanted: bool) -> None:
        placement = Placement()
        placement.put(self.found)
        assert (self.span not in placement.sets) is wanted

    def check_affected(self, wanted: bool) -> None:
        assert self.affected is wanted


class PlacementPlay(Play):
    """All sets and the tasks that run."""

    def __init__(self, given: Facts) -> None:
        super().__init__(given)
        self.limit = given.get("max_task_concurrency", 10)
        self.accepted: list[bool] = []
        self.sends: Sends = []
        self.placement = Placement(self.limit)
        for table in given.get("spans", {}):
            self.placement.put(set_of(Span(int(table)), plain(given["spans"][table])))

    def op_reset(self, _event: Facts) -> None:
        self.placement = Placement(self.limit)
        self.accepted, self.sends = [], []

    def op_force_span(self, event: Facts) -> None:
        data = {k: plain(event[k]) for k in event if k not in {"op", "table", "note"}}
        self.placement.put(set_of(Span(event["table"]), data))
        self.accepted, self.sends = [], []

    def op_tasks(self, event: Facts) -> None:
        tasks = [self._task(plain(each)) for each in event["tasks"]]
        self.accepted, self.sends = self.placement.accept(tasks)

    @staticmethod
    def _task(data: dict[str, Any]) -> Task:
        kind = data.pop("kind")
        if kind != "burst":
            known = {"table", "capture", "dest", "checkpoint"}
            assert set(data) <= known, f"unknown parts of a task: {data}"
            capture = data.get("capture", data.get("dest", ""))
            return SpanTask(TaskKind(kind), Span(data["table"]), capture, data.get("checkpoint", 0))
        assert set(data) <= {"add", "remove", "move"}, f"unknown parts of a burst: {data}"
        adds = [
            SpanTask(TaskKind.ADD, Span(table), capture, at)
            for table, capture, at in data.get("add", [])
        ]
        removes = [SpanTask(TaskKind.REMOVE, Span(table)) for table in data.get("remove", [])]
        moves = [SpanTask(TaskKind.MOVE, Span(each[0]), each[1]) for each in data.get("move", [])]
        return Burst((*adds, *removes, *moves))

    def op_init(self, event: Facts) -> None:
        of: dict[Span, dict[str, SpanStatus]] = {}
        for capture in event["reports"]:
            for table, state in plain(event["reports"][capture]):
                status = SpanStatus(Span(table), TableState(state))
                of.setdefault(Span(table), {})[capture] = status
        self.accepted, self.sends = [], []
        for span, statuses in of.items():
            self.placement.put(rebuilt(span, event.get("start", 0), statuses))

    def op_messages(self, event: Facts) -> None:
        self.accepted, self.sends = [], []
        for each in event["messages"]:
            status = status_of(Span(each["table"]), each)
            if status.span in self.placement.sets:
                self.sends += self.placement.reported(each["from"], status)

    def op_removed(self, event: Facts) -> None:
        self.accepted, self.sends = [], []
        captures = plain(event["captures"])
        for capture in captures:
            self.sends += self.placement.capture_down(capture)

    def check_accepted(self, wanted: list[bool]) -> None:
        assert self.accepted == wanted

    def check_messages_unordered(self, wanted: list[Any]) -> None:
        same_messages([message(*each) for each in self.sends], wanted, ordered=False)

    def check_messages(self, wanted: list[Any]) -> None:
        self.check_messages_unordered(wanted)

    def check_states(self, wanted: Facts) -> None:
        for table in wanted:
            found = self.placement.sets.get(Span(int(table)))
            assert (found.state if found else None) == wanted[table]

    def check_sets(self, wanted: int) -> None:
        assert len(self.placement.sets) == wanted

    def check_running(self, wanted: list[int]) -> None:
        assert sorted(span.table for span in self.placement.running) == sorted(wanted)

    def check_primaries(self, wanted: Facts) -> None:
        for table in wanted:
            assert (self.placement.sets[Span(int(table))].primary or "") == wanted[table]


BASE_PLAYS: Final[dict[str, Callable[[Facts], Play]]] = {
    "replication_set": SetPlay,
    "replication_manager": PlacementPlay,
}
