"""Keeps the topology in the cluster database, object by object, under one rising revision.

Decides how a topology is read, changed and watched. It must not decide what a topology may look
like: a change is a pure function from snapshot to snapshot, and
:mod:`tidegate.topology.validation` judges the result. A change is refused for the errors it would
bring in, not for those that are there already: a broken corner must not stop the mending of it.

A change is: read a snapshot, apply the function, validate, then commit in one transaction only the
objects that differ, each by compare-and-swap on its own version and many in one statement, and the
revision by compare-and-swap on the one that was read. The revision is what makes changes serial:
validation looks at the whole topology (a routing rule needs its keyspace), so two changes to
different objects may each be right and wrong together. Whoever loses reads again and applies the
function again, which is why it must be pure.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from functools import cache
from itertools import batched, chain
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text, select, text
from sqlalchemy.exc import IntegrityError

from tidegate.backoff import Backoff
from tidegate.chance import CHANCE
from tidegate.cluster.ledger import Update
from tidegate.errors import ConflictError, InvalidArgumentError
from tidegate.topology.model import ObjectKey, Snapshot
from tidegate.topology.validation import snapshot_findings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Connection, TextClause

    from tidegate.cluster.database import ClusterDatabase

DEFAULT_ATTEMPTS: Final = 40
POLL_S: Final = 0.02
"""How often another process's change is looked for while somebody waits for one."""
TRACE_POLL_S: Final = 0.05
"""The same on engines whose files show whether something was committed at all."""
LOOK_S: Final = 1.0
"""How often the database itself is asked where its files show no change."""
_OVERTAKEN: Final = Backoff(0.001, 0.1, spread=(0.0, 1.0))
OBJECTS_A_STATEMENT: Final = 60
"""A workflow of a thousand tables changes ten thousand rules in one transaction, and every other
writer waits for it. Each object takes four parameters, and some engines take 255 of them."""
NAMED_MAX: Final = 3
_REMOVE: Final = "DELETE FROM topology_object WHERE (kind, name, version) IN (VALUES {})"
_ADD: Final = "INSERT INTO topology_object (kind, name, version, body) VALUES {}"

_CREATE_OBJECTS: Final = """
CREATE TABLE topology_object (
    kind text NOT NULL,
    name text NOT NULL,
    version bigint NOT NULL,
    body text NOT NULL,
    PRIMARY KEY (kind, name)
)
"""
_CREATE_REVISION: Final = """
CREATE TABLE topology_revision (
    id integer NOT NULL PRIMARY KEY CHECK (id = 1),
    revision bigint NOT NULL
)
"""
_FIRST_REVISION: Final = "INSERT INTO topology_revision (id, revision) VALUES (1, 0)"

UPDATES: Final = (Update("topology.objects", (_CREATE_OBJECTS, _CREATE_REVISION, _FIRST_REVISION)),)
"""What the topology adds to the ledger of the cluster database."""

_METADATA: Final = MetaData()
_OBJECTS: Final = Table(
    "topology_object",
    _METADATA,
    Column("kind", Text),
    Column("name", Text),
    Column("version", BigInteger),
    Column("body", Text),
)
_REVISION: Final = Table(
    "topology_revision", _METADATA, Column("id", Integer), Column("revision", BigInteger)
)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A snapshot as it was read, with what is needed to change it."""

    snapshot: Snapshot
    bodies: Mapping[ObjectKey, str]
    versions: Mapping[ObjectKey, int]


class TopologyStore:
    """The topology of one cluster; safe for many threads and many processes."""

    def __init__(self, database: ClusterDatabase) -> None:
        self._database = database
        self._seen = threading.Condition()
        self._latest = -1
        self._is_polled = False
        self._known: _Stored | None = None

    def read(self) -> Snapshot:
        """The topology as it is now.

        Raises:
            ClusterDatabaseError: the database failed.
        """
        with self._database.read() as connection:
            return self._read(connection).snapshot

    def was_changed(self, connection: Connection) -> bool:
        """Whether anything was ever put into the topology, as a transaction sees it."""
        return _revision(connection) > 0

    def revision(self) -> int:
        """The revision now; much cheaper than reading all objects."""
        with self._database.read() as connection:
            return _revision(connection)

    def update(
        self,
        change: Callable[[Snapshot], Snapshot],
        *,
        attempts: int = DEFAULT_ATTEMPTS,
        guard: Callable[[Connection], None] | None = None,
    ) -> Snapshot:
        """Change the topology; a change that changes nothing commits nothing.

        Args:
            change: pure; called again, with a newer snapshot, whenever somebody else was first.
                What it raises reaches the caller, and nothing is changed.
            attempts: how often to try.
            guard: called inside the committing transaction, to refuse it by raising: a check of
                the lease under which the change is made, or a write that belongs to it.

        Returns:
            The topology as committed.

        Raises:
            InvalidArgumentError: the result is not valid; names what is wrong with it.
            ConflictError: somebody else was first each time.
            ClusterDatabaseError: the database failed; nothing was changed.
        """
        for attempt in range(attempts):
            with self._database.read() as connection:
                stored = self._read(connection)
            wanted = change(stored.snapshot)
            bodies = _bodies(wanted)
            if bodies == stored.bodies and guard is None:
                return stored.snapshot
            if bodies != stored.bodies:
                _refuse_new_errors(stored.snapshot, wanted)
            try:
                with self._database.transaction() as connection:
                    if guard is not None:
                        guard(connection)
                    is_committed = _swap(connection, stored, bodies)
            except ConflictError:
                self._known = None
                raise
            if is_committed:
                revision = stored.snapshot.revision + (bodies != stored.bodies)
                committed = Snapshot.from_objects(revision, wanted.objects())
                self._known = _Stored(committed, bodies, _versions(stored, bodies))
                self._notice(revision)
                return committed
            time.sleep(_OVERTAKEN.pause_s(attempt + 1, CHANCE.random()))
        raise ConflictError(
            f"the topology was changed by somebody else in each of {attempts} attempts",
            next_step="try again",
        )

    def check(self, change: Callable[[Snapshot], Snapshot]) -> Snapshot:
        """What :meth:`update` would commit, without committing it; errors likewise."""
        before = self.read()
        wanted = change(before)
        _refuse_new_errors(before, wanted)
        return wanted

    def hurry(self) -> None:
        """Have whoever waits for a change look now: somebody needs to know at once."""
        with self._seen:
            self._seen.notify_all()

    def wait_for_change(
        self, revision: int, timeout_s: float, poll_s: Callable[[], float] = lambda: POLL_S
    ) -> int:
        """Wait until the revision differs from ``revision``, at most ``timeout_s`` seconds.

        A change made through this store is seen at once, one made by another process within 50 ms.
        However many wait, one of them at a time looks into the database.

        Args:
            revision: that is known.
            timeout_s: how long to wait.
            poll_s: how often to look for a change of another process; asked before each pause.

        Returns:
            The revision, which is ``revision`` still when the time was over.

        Raises:
            ClusterDatabaseError: the database failed.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            with self._seen:
                if self._latest > revision:
                    return self._latest
                left_s = deadline - time.monotonic()
                if left_s <= 0 or self._is_polled:
                    if left_s <= 0:
                        return revision
                    self._seen.wait(min(left_s, LOOK_S))
                    continue
                self._is_polled = True
            try:
                trace = self._database.trace()
                found = self.revision()
                self._notice(found)
                if found != revision:
                    return found
                self._pause(revision, deadline, trace, poll_s)
            finally:
                with self._seen:
                    self._is_polled = False
                    self._seen.notify_all()  # another one looks, if this one does not go on

    def _pause(
        self, revision: int, deadline: float, trace: object, poll_s: Callable[[], float]
    ) -> None:
        """Wait until it is time to look into the database again, or this store has a change."""
        look_at = min(deadline, time.monotonic() + LOOK_S)
        while True:
            pause_s = poll_s() if trace is None else max(poll_s(), TRACE_POLL_S)
            with self._seen:
                if self._latest > revision:
                    return
                is_hurried = self._seen.wait(min(pause_s, max(0.0, look_at - time.monotonic())))
            is_silent = trace is not None and trace == self._database.trace()
            if is_hurried or not is_silent or time.monotonic() >= look_at:
                return

    def _read(self, connection: Connection) -> _Stored:
        """The topology as a transaction sees it; read again only when its revision is another."""
        known = self._known
        if known is None or known.snapshot.revision != _revision(connection):
            known = self._known = _read(connection)
        return known

    def _notice(self, revision: int) -> None:
        with self._seen:
            if revision > self._latest:
                self._latest = revision
                self._seen.notify_all()


def _refuse_new_errors(before: Snapshot, wanted: Snapshot) -> None:
    errors = {str(each) for each in snapshot_findings(wanted) if each.severity == "error"}
    if errors:
        errors -= {str(each) for each in snapshot_findings(before)}
    if errors:
        raise InvalidArgumentError(
            f"the topology would be wrong: {'; '.join(sorted(errors))}",
            next_step="mend what is named and try again; nothing was changed",
            findings=sorted(errors),
        )


def _revision(connection: Connection) -> int:
    revision: int = connection.execute(select(_REVISION.c.revision)).scalar_one()
    return revision


def _read(connection: Connection) -> _Stored:
    revision = _revision(connection)
    bodies: dict[ObjectKey, str] = {}
    versions: dict[ObjectKey, int] = {}
    for kind, name, version, body in connection.execute(select(_OBJECTS)):
        bodies[kind, name] = body
        versions[kind, name] = version
    objects = {key: json.loads(body) for key, body in bodies.items()}
    return _Stored(Snapshot.from_objects(revision, objects), bodies, versions)


def _bodies(snapshot: Snapshot) -> dict[ObjectKey, str]:
    return {key: _written(body) for key, body in snapshot.objects().items()}


def _written(body: Any) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _swap(connection: Connection, stored: _Stored, bodies: Mapping[ObjectKey, str]) -> bool:
    """Write what differs; False, with nothing written, when the topology is not the one read."""
    revision = stored.snapshot.revision
    is_read_one = (_REVISION.c.id == 1) & (_REVISION.c.revision == revision)
    following = revision + (bodies != stored.bodies)
    moved = connection.execute(
        _REVISION.update().where(is_read_one).values(revision=following)
    ).rowcount
    if moved != 1:
        return False
    changed = [
        key
        for key in sorted(stored.bodies.keys() | bodies.keys())
        if stored.bodies.get(key) != bodies.get(key)
    ]
    _remove(connection, [(*key, stored.versions[key]) for key in changed if key in stored.versions])
    versions = _versions(stored, bodies)
    _add(connection, [(*key, versions[key], bodies[key]) for key in changed if key in bodies])
    return True


def _versions(stored: _Stored, bodies: Mapping[ObjectKey, str]) -> dict[ObjectKey, int]:
    """The version of each object once these bodies are committed."""
    return {
        key: stored.versions.get(key, 0) + (stored.bodies.get(key) != body)
        for key, body in bodies.items()
    }


def _remove(connection: Connection, objects: Sequence[tuple[str, str, int]]) -> None:
    """Remove objects, each at the version it was read at; those that changed are added again."""
    for few in batched(objects, OBJECTS_A_STATEMENT, strict=False):
        if connection.execute(_statement(_REMOVE, len(few), 3), _values(few)).rowcount != len(few):
            raise _overtaken([(kind, name) for kind, name, _ in few])


def _add(connection: Connection, rows: Sequence[tuple[str, str, int, str]]) -> None:
    for few in batched(rows, OBJECTS_A_STATEMENT, strict=False):
        try:
            connection.execute(_statement(_ADD, len(few), 4), _values(few))
        except IntegrityError:
            raise _overtaken([(kind, name) for kind, name, *_ in few]) from None


@cache
def _statement(template: str, rows: int, columns: int) -> TextClause:
    """A statement with placeholders; SQLAlchemy's own of many rows are compiled anew each time."""
    places = ", ".join(
        f"({', '.join(f':p{row * columns + column}' for column in range(columns))})"
        for row in range(rows)
    )
    return text(template.format(places))


def _values(rows: Sequence[Sequence[object]]) -> dict[str, object]:
    return {f"p{place}": value for place, value in enumerate(chain.from_iterable(rows))}


def _overtaken(keys: Sequence[ObjectKey]) -> ConflictError:
    """Somebody wrote an object and left the revision as it was: not through this module."""
    named = ", ".join(f"{kind} {name}" for kind, name in keys[:NAMED_MAX])
    more = f" or one of {len(keys) - NAMED_MAX} others" if len(keys) > NAMED_MAX else ""
    return ConflictError(
        f"{named}{more} was changed without a new revision of the topology",
        next_step="change the topology through tidegate only, then try again",
    )
