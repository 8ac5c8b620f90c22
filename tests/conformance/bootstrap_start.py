"""Stories of a cluster's first start: who initialises, how often, and what is never repeated.

Each is told on a real SQLite file by the real service. What a story says about networks is made to
happen at three seams: the look at the marker, the lock, and the end of a transaction.
"""

from __future__ import annotations

import re
import sys
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from bootstrap.make_service import SCHEMA, TRACK, Handle, ShiftedDatabase, World
from conformance.scenarios import Facts
from tidegate.bootstrap.founding import LOCK_KEY, Founding, Role
from tidegate.bootstrap.locker import LeaseLocker, Lock
from tidegate.bootstrap.marker import Marker
from tidegate.bootstrap.model import UpgradeState, Version
from tidegate.bootstrap.store import UpgradeStore
from tidegate.bootstrap.stored import StoredDirectory
from tidegate.cluster.database import open_store
from tidegate.cluster.leases import Leases
from tidegate.errors import ConnectError, OutcomeUnknownError, WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy import Connection

    from conformance.scenarios import Scenario

CORE = ("async_task", "cron_task", "daemon_task")
LATE = ("sql_task", "sql_task_run")
BUSY_S = 0.2
DEFAULT_DEADLINE_S = 60.0
DEADLINE_WORDS = ("deadline", "timeout", "timed out", "context", "time limit")
KIND_KEYS = (
    "first_init_statement_fails_once_with",
    "first_state_check_fails_once_with",
    "commit_returns",
)


class PermanentError(Exception):
    """Repeating does not help."""


def failure(kind: str) -> Exception:
    """The error of a kind, as the cluster database raises it."""
    kinds: dict[str, Callable[[], Exception]] = {
        "connection_reset": lambda: ConnectError("connection reset by peer"),
        "backend_closed": lambda: ConnectError("the server closed the connection"),
        "backend_cannot_connect": lambda: ConnectError("the server cannot be reached"),
        "transient error": lambda: ConnectError("the connection was lost"),
        "txn_outcome_unknown": lambda: OutcomeUnknownError("cut inside the COMMIT"),
        "permanent": PermanentError,
    }
    made = kinds[kind]()
    made.add_note(kind)
    return made


class StoryDatabase(ShiftedDatabase):
    """A cluster database whose transactions end as a story says."""

    commit_fails: str | None = None
    rollback_fails: str | None = None
    under_way: Any = None

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        real = super().transaction()
        try:
            connection = real.__enter__()
            yield connection
        except BaseException:
            self._roll_back(real)
            raise
        if self.commit_fails is None:
            real.__exit__(None, None, None)
            return
        # The COMMIT is under way, its answer does not come back.
        kind, self.commit_fails = self.commit_fails, None
        self.under_way = real
        self._local.writing = False
        raise failure(kind)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        real = super().read()
        try:
            connection = real.__enter__()
            yield connection
        except BaseException:
            self._roll_back(real)
            raise
        real.__exit__(None, None, None)

    def _roll_back(self, real: Any) -> None:
        """Undo; the error that this raises, if any, takes the place of the one that is handled."""
        real.__exit__(*sys.exc_info())
        if self.rollback_fails is not None:
            raise failure(self.rollback_fails)

    def arrive(self, *, committed: bool = True) -> None:
        """The COMMIT that was under way takes effect, or the connection ends without it."""
        if self.under_way is not None:
            real, self.under_way = self.under_way, None
            if committed:
                real.__exit__(None, None, None)
                return
            with suppress(ZeroDivisionError):
                real.__exit__(ZeroDivisionError, ZeroDivisionError(), None)


@dataclass
class Time:
    """A clock that stands still but for pauses."""

    now_s: float = 0.0
    pauses: list[float] = field(default_factory=list)

    def clock(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        self.now_s += seconds
        return False


class StoryLocker(LeaseLocker):
    """Counts requests; may lose the reply to one that was granted."""

    requests = 0
    loses_reply: str | None = None

    def get(self, key: str) -> Lock | None:
        self.requests += 1
        lock = super().get(key)
        if self.loses_reply is not None:
            raise failure(self.loses_reply)
        return lock


class StoryFounding(Founding[Any]):
    """Tells a story of each look at the marker."""

    story: ClassVar[Start]

    def is_initialised(self) -> bool:
        self.story.looked()
        return super().is_initialised()


@dataclass
class Start:
    """One node's first start, and what may go wrong in it."""

    database: StoryDatabase
    world: World
    time: Time = field(default_factory=Time)
    deadline_s: float = DEFAULT_DEADLINE_S
    before_check: Callable[[int], None] = lambda _number: None
    within_check: Callable[[], None] = lambda: None
    initialise: Callable[[int], None] = lambda _run: None
    loses_reply: str | None = None
    init_runs: int = 0
    checks: int = 0
    fail: Callable[[], None] | None = None

    def run(self, given: list[Handle], holder: str = "node_a") -> dict[str, Any]:
        """Start; what was seen."""
        locker = StoryLocker(self.database, holder)
        locker.loses_reply = self.loses_reply
        service = self.world.service(
            given,
            holder=holder,
            locker=locker,
            marker=Marker(frozenset(CORE), frozenset(LATE), self._in_use),
            initialise=self._initialise,
            clock=self.time.clock,
            pause=self.time.pause,
        )
        plain = service._founding
        founding = StoryFounding(**{f.name: getattr(plain, f.name) for f in fields(plain)})
        StoryFounding.story = self
        service._founding = founding
        role: Role | None = None
        try:
            role = service.bootstrap(timeout_s=self.deadline_s)
            result = "ok"
        except WaitTimeoutError:
            result = "deadline"
        except Exception as error:
            notes = getattr(error, "__notes__", None)
            if not notes:
                raise
            result = f"{notes[0]}{' error' if notes[0] == 'permanent' else ''} returned"
        return {
            "result": result,
            "role": str(role),
            "state_checks": self.checks,
            "lock_requests": locker.requests,
            "init_runs": self.init_runs,
            "already_bootstrapped": role is Role.FOUND,
            "pauses": self.time.pauses,
        }

    def looked(self) -> None:
        """A look at the marker begins."""
        self.checks += 1
        self.before_check(self.checks)

    def _in_use(self, _connection: Connection) -> bool:
        self.within_check()
        return False

    def _initialise(self, connection: Connection) -> None:
        self.init_runs += 1
        self.initialise(self.init_runs)
        make_tables(connection, (*CORE, *LATE))


def make_tables(connection: Connection, names: Iterable[str]) -> None:
    for name in names:
        connection.exec_driver_sql(f"CREATE TABLE IF NOT EXISTS {name} (id bigint PRIMARY KEY)")


@contextmanager
def a_start() -> Iterator[Start]:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/cluster.db"
        with StoryDatabase(open_store(url, busy_timeout_s=BUSY_S)) as database:
            SCHEMA.ensure(database)
            world = World(database, StoredDirectory(database, TRACK))
            try:
                yield Start(database, world)
            finally:
                database.arrive(committed=False)
                world.close()


def check_seen(expect: Facts, seen: dict[str, Any]) -> None:
    """Compare what was seen with what is expected; a key of another kind fails."""
    for key in expect:
        wanted = expect[key]
        if key.endswith("_at_least"):
            assert seen[key.removesuffix("_at_least")] >= wanted, (key, seen)
        elif key == "retry_interval_ms":
            assert seen["pauses"], "nothing was waited for"
            assert {round(p * 1000) for p in seen["pauses"]} == {wanted}
        elif key == "result" and seen["result"] == "deadline":
            assert any(word in str(wanted).lower() for word in DEADLINE_WORDS), wanted
        else:
            assert key in seen, f"unknown expectation {key!r}"
            assert seen[key] == wanted, (key, seen)


def first_start(case: Scenario) -> None:
    """One node, or two, and an empty cluster or not."""
    kinds = [kind for key in KIND_KEYS for kind in _listed(case.given.get(key))]
    events = case.take_all()
    if all(isinstance(event, Facts) for event in events):
        for event in events:
            with a_start() as start:
                _prepare(start, case.given, None)
                _prepare(start, event, None)
                _play(start, case.expect[event["variant"]], "node_a")
        return
    assert len(events) == 1, events
    (text,) = events
    node = text.partition(".bootstrap(")[0]
    assert node in {"node_a", "node_b"}, f"unknown event {text!r}"
    rest = text.partition(")")[2].strip(" ,")
    assert rest in {"", "once per error kind", "with a deadline", "until the deadline"}, text
    for kind in kinds or [None]:
        with a_start() as start:
            _prepare(start, case.given, kind)
            _play(start, case.expect, node)
            if "poll_interval_s" in case.given:
                assert set(start.time.pauses) <= {case.given["poll_interval_s"]}


def _play(start: Start, expect: Facts, node: str) -> None:
    check_seen(expect, start.run([Handle(Version("1.0.0", "1.0.0"))], node))


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _prepare(start: Start, facts: Facts, kind: str | None) -> None:
    """Make happen what is given; a key of another kind fails."""
    for key in facts:
        assert key in PREPARATIONS, f"unknown fact {key!r}"
        PREPARATIONS[key](start, facts[key], kind)


def _marker_tables(start: Start, names: list[str], _kind: str | None) -> None:
    with start.database.transaction() as connection:
        make_tables(connection, names)


def _core_tables(start: Start, which: str, _kind: str | None) -> None:
    assert which == "all present"
    _marker_tables(start, list(CORE), None)


def _late_tables(start: Start, which: str, _kind: str | None) -> None:
    if which != "absent":
        assert which == "all present"
        _marker_tables(start, list(LATE), None)


def _version_table(start: Start, which: str, _kind: str | None) -> None:
    """Our table is always there; what tells is whether a version is recorded in it."""
    if which == "absent":
        return
    assert which == "present"
    _record_version(start)


def _record_version(start: Start) -> None:
    store, version = UpgradeStore(TRACK), Version("1.0.0", "1.0.0")
    with start.database.transaction() as connection:
        now = start.database.now(connection)
        store.add_version(connection, version, UpgradeState.READY, finalised=True, now=now)


def _lock_owner(start: Start, owner: str, _kind: str | None) -> None:
    start.database.shift = timedelta()
    Leases(start.database).acquire(LOCK_KEY, owner, 3600)


def _marker_visible(start: Start, number: int, _kind: str | None) -> None:
    def before(check: int) -> None:
        if check == number:
            _marker_tables(start, [*CORE, *LATE], None)
            _record_version(start)

    start.before_check = before


def _lock_free(start: Start, free: Any, _kind: str | None) -> None:
    assert free is True
    assert Leases(start.database).look(LOCK_KEY, 10.0).is_free


def _init_fails_once(start: Start, _kinds: Any, kind: str | None) -> None:
    def initialise(run: int) -> None:
        if run == 1:
            assert kind is not None
            raise failure(kind)

    start.initialise = initialise


def _check_fails_once(start: Start, _kinds: Any, kind: str | None) -> None:
    left = [kind]

    def within() -> None:
        if left:
            once = left.pop()
            assert once is not None
            raise failure(once)

    start.within_check = within


def _error(start: Start, error: Facts, _kind: str | None) -> None:
    """The body fails and then its rollback, each in its own way; ``phase`` says where."""
    start.database.rollback_fails = error["rollback"]
    body: str = error["body"]

    def fail(_run: int = 1) -> None:
        raise failure(body)

    start.fail = fail


def _phase(start: Start, phase: str, _kind: str | None) -> None:
    assert start.fail is not None, "nothing fails"
    if phase == "initial state check":
        start.within_check = start.fail
    else:
        assert phase == "owner initialisation", f"unknown phase {phase!r}"
        start.initialise = lambda _run: start.fail() if start.fail else None


def _is(wanted: Any) -> Callable[[Start, Any, str | None], None]:
    def check(_start: Start, value: Any, _kind: str | None) -> None:
        assert value == wanted, f"{value!r} is not understood"

    return check


def _commit_returns(start: Start, _kinds: Any, kind: str | None) -> None:
    def initialise(_run: int) -> None:
        start.database.commit_fails = kind

    start.initialise = initialise


def _later_checks(start: Start, given: Any, _kind: str | None) -> None:
    """What the looks at the marker find after the one before the lock."""
    later = _listed(given)

    def before(check: int) -> None:
        if check == 1:
            return
        what = later[min(check - 2, len(later) - 1)]
        if what == "present":
            start.database.arrive()
        elif what != "absent":
            assert what in {"transient error", "connection_reset"}, what
            raise failure(what)

    assert set(later) <= {"present", "absent", "transient error", "connection_reset"}, later
    start.before_check = before


def _lock_service(start: Start, text: str, _kind: str | None) -> None:
    found = re.fullmatch(r"grants slot 1 but the reply is lost \((\w+)\)", text)
    assert found, text
    start.loses_reply = found[1]


def _deadline(unit_s: float) -> Callable[[Start, float, str | None], None]:
    def set_deadline(start: Start, value: float, _kind: str | None) -> None:
        start.deadline_s = value * unit_s

    return set_deadline


PREPARATIONS: dict[str, Callable[[Start, Any, str | None], None]] = {
    "marker_database": _is(True),  # noqa: FBT003 - a value of a story
    "marker_tables": _marker_tables,
    "core_tables": _core_tables,
    "upgrade_managed_tables": _late_tables,
    "version_table": _version_table,
    "lock_owner": _lock_owner,
    "lock_free": _lock_free,
    "lock_service": _lock_service,
    "marker_visible_from_check": _marker_visible,
    "poll_interval_s": lambda _start, _value, _kind: None,  # compared with the pauses at the end
    "first_init_statement_fails_once_with": _init_fails_once,
    "failure_phase": _is("inside transaction body, rollback succeeds"),
    "first_state_check_fails_once_with": _check_fails_once,
    "error": _error,
    "phase": _phase,
    "variant": lambda _start, _value, _kind: None,  # names the expectation
    "init_body": _is("completes"),
    "commit_returns": _commit_returns,
    "later_state_checks": _later_checks,
    "deadline_s": _deadline(1),
    "deadline_ms": _deadline(0.001),
    "timeout_s": _deadline(1),
    "context_timeout_s": _deadline(1),
}
"""What may be given, or vary from event to event."""
