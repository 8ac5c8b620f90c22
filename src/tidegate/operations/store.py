"""Keeps cluster operations, their tasks and their logs in the cluster database.

Decides nothing about operations: it applies pure functions to what is stored, by compare-and-swap
on ``version``, together with the lines of the log that say what changed, and under the lease of
whoever works on the operation. With ``stored`` it holds the only statements on these tables.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, func, or_, select
from sqlalchemy.exc import IntegrityError

from tidegate.cluster.leases import Leases
from tidegate.errors import ConflictError, IdempotencyKeyError, NotFoundError, TidegateError
from tidegate.operations.decisions import told
from tidegate.operations.model import ENDED, ClusterOperation
from tidegate.operations.stored import (
    LOG,
    OPERATION,
    TASK,
    columns,
    fields_of,
    read_all,
    write_tasks,
)
from tidegate.secret import redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sqlalchemy import ColumnElement, Connection

    from tidegate.cluster.database import ClusterDatabase
    from tidegate.cluster.leases import Lease
    from tidegate.operations.history import Asked, History

UNFINISHED_MAX: Final = 20_000
ENDED_KEPT: Final = 1_000
"""Operations that have ended and are kept; the oldest go first, with their logs."""
LINES_KEPT: Final = 10_000
"""Lines of one operation's log; the oldest go first."""
LINE_MAX_CHARS: Final = 2_000
ATTEMPTS_MAX: Final = 20
REMOVED_AT_ONCE: Final = 100


class OperationsBusyError(TidegateError):
    """Too many operations wait already; nothing was enqueued."""

    code = "TG-OPS-001"
    http_status = 503
    retryable = True


@dataclass(frozen=True, slots=True)
class Entry:
    """What decides whether an operation may be begun: what it is, not how far it is."""

    id: str
    name: str
    parameters: Mapping[str, str]
    is_under_way: bool
    is_working: bool = True
    """It is not paused and waits for nobody."""
    priority: int = 0
    servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of an operation's log; ``task`` is a task's key, or empty."""

    seq: int
    at_ms: int
    task: str
    line: str


class OperationStore:
    """All operations of a cluster."""

    def __init__(self, database: ClusterDatabase, history: History | None = None) -> None:
        """``history`` notes changes in the audit log; None: nothing is noted."""
        self._database = database
        self._history = history
        self._leases = Leases(database)

    def insert(
        self, operation: ClusterOperation, *, key: str | None, request: str
    ) -> ClusterOperation:
        """Add an operation; with a key that was used before, the one that was made then.

        Args:
            operation: the new one.
            key: under which the caller may send the same request again.
            request: a hash of what was asked for.

        Raises:
            IdempotencyKeyError: the key was used for another request.
            OperationsBusyError: too many operations have not ended.
        """
        world = self._world()
        try:
            with self._database.transaction() as connection:
                if key is not None and (found := _by_key(connection, key, request)) is not None:
                    return found
                self._refuse_too_many(connection)
                now_ms = self._now_ms(connection)
                added = replace(operation, created_at_ms=now_ms, version=1)
                added = _logged(connection, added, told(None, added), now_ms)
                values = columns(added) | {"idempotency_key": key, "request": request}
                connection.execute(OPERATION.insert().values(**values))
                write_tasks(connection, None, added)
                self._note(connection, None, added, world=world)
                return added
        except IntegrityError:  # the same key, at the same moment
            if key is None:
                raise
            with self._database.read() as connection:
                found = _by_key(connection, key, request)
                assert found is not None, "the key was taken, and is not there"
                return found

    def _world(self) -> str:
        return "" if self._history is None else self._history.world()

    def _note(
        self,
        connection: Connection,
        before: ClusterOperation | None,
        after: ClusterOperation,
        *,
        world: str,
        asked: Asked | None = None,
        member: str = "",
    ) -> None:
        if self._history is not None:
            self._history.write(connection, before, after, asked=asked, world=world, member=member)

    @staticmethod
    def _refuse_too_many(connection: Connection) -> None:
        unfinished = OPERATION.c.state.not_in([state.value for state in ENDED])
        query = select(func.count()).select_from(OPERATION).where(unfinished)
        waiting = connection.execute(query).scalar_one()
        if waiting >= UNFINISHED_MAX:
            raise OperationsBusyError(
                f"{waiting} operations have not ended yet; no more are taken",
                next_step="wait for some to end, or cancel some: tidegate operation list",
            )

    def find_key(self, key: str, request: str) -> ClusterOperation | None:
        """The operation that was enqueued with a key; None: none was.

        Raises:
            IdempotencyKeyError: the key was used for another request.
        """
        with self._database.read() as connection:
            return _by_key(connection, key, request)

    def get(self, id_: str) -> ClusterOperation:
        """The operation of that id.

        Raises:
            NotFoundError: there is none.
        """
        with self._database.read() as connection:
            return _get(connection, id_)

    def version(self, id_: str) -> int:
        """The version of an operation's record; 0 when there is none."""
        query = select(OPERATION.c.version).where(OPERATION.c.id == id_)
        with self._database.read() as connection:
            return connection.execute(query).scalar() or 0

    def to_do(self, limit: int, after: Entry | None = None) -> list[Entry]:
        """Operations that a runner can go on with: the highest priority first, then the oldest."""
        where = OPERATION.c.to_do == 1
        if after is not None:
            lower = OPERATION.c.priority < after.priority
            same = and_(OPERATION.c.priority == after.priority, OPERATION.c.id > after.id)
            where = and_(where, or_(lower, same))
        with self._database.read() as connection:
            return _entries(connection, where, limit)

    def under_way(self) -> list[Entry]:
        """Operations that have begun and not ended, and so hold their locks."""
        with self._database.read() as connection:
            return _entries(connection, OPERATION.c.is_under_way == 1, None)

    def page(
        self,
        *,
        states: Sequence[str],
        name: str | None,
        before: str | None,
        limit: int,
        caller: str | None = None,
    ) -> list[ClusterOperation]:
        """The newest operations, or the newest before one; without their tasks' details."""
        query = select(OPERATION).order_by(OPERATION.c.id.desc()).limit(limit)
        if states:
            query = query.where(OPERATION.c.state.in_(list(states)))
        if name is not None:
            query = query.where(OPERATION.c.name == name)
        if caller is not None:
            query = query.where(OPERATION.c.caller == caller)
        if before is not None:
            query = query.where(OPERATION.c.id < before)
        with self._database.read() as connection:
            return read_all(connection, connection.execute(query).all())

    def update(
        self,
        id_: str,
        change: Callable[[ClusterOperation], ClusterOperation],
        *,
        lease: Lease | None = None,
        lines: Iterable[tuple[str, str]] = (),
        asked: Asked | None = None,
    ) -> ClusterOperation:
        """Replace an operation by what ``change`` makes of it.

        Args:
            id_: of the operation.
            change: a pure function; called again when somebody wrote meanwhile.
            lease: under which the change is made; None: by a person's request.
            lines: for its log.
            asked: what a person asks; in the logs when it changes something.

        Raises:
            NotFoundError: there is none.
            LeaseLostError: the lease is not ours any more; nothing changed.
            ConflictError: others wrote again and again meanwhile.
        """
        extra = tuple(lines)
        return self._changed(id_, lambda _c, before: change(before), lease, extra, asked)

    def begin(
        self,
        id_: str,
        lease: Lease,
        change: Callable[[ClusterOperation, Sequence[Entry]], ClusterOperation],
    ) -> ClusterOperation:
        """As :meth:`update`; ``change`` sees the other operations that are under way, too."""

        def decided(connection: Connection, before: ClusterOperation) -> ClusterOperation:
            every = _entries(connection, OPERATION.c.is_under_way == 1, None)
            return change(before, [each for each in every if each.id != id_])

        return self._changed(id_, decided, lease, ())

    def _changed(
        self,
        id_: str,
        change: Callable[[Connection, ClusterOperation], ClusterOperation],
        lease: Lease | None,
        lines: tuple[tuple[str, str], ...],
        asked: Asked | None = None,
    ) -> ClusterOperation:
        world = self._world()
        member = "" if lease is None else lease.holder
        for _ in range(ATTEMPTS_MAX):
            try:
                with self._database.transaction() as connection:
                    if lease is not None:
                        self._leases.check(connection, lease)
                    before = _get(connection, id_)
                    after = change(connection, before)
                    if after == before and not lines:
                        return before
                    after = replace(after, version=before.version + 1)
                    now_ms = self._now_ms(connection)
                    said = [] if asked is None else [("", asked.line)]
                    said += [*lines, *told(before, after)]
                    after = _logged(connection, after, said, now_ms)
                    _replace(connection, before, after)
                    self._note(connection, before, after, world=world, asked=asked, member=member)
                    return after
            except _OvertakenError:
                continue
        raise ConflictError(
            f"operation {id_} was changed by somebody else again and again",
            next_step="try again",
            operation=id_,
        )

    def log(self, id_: str, *, after: int, limit: int) -> list[LogLine]:
        """Lines of an operation's log after a number, oldest first.

        Raises:
            NotFoundError: there is no such operation.
        """
        query = (
            select(LOG.c.seq, LOG.c.at_ms, LOG.c.task, LOG.c.line)
            .where(and_(LOG.c.operation == id_, LOG.c.seq > after))
            .order_by(LOG.c.seq)
            .limit(limit)
        )
        with self._database.read() as connection:
            _header(connection, id_)
            return [LogLine(*row) for row in connection.execute(query)]

    def forget_old(self) -> int:
        """Remove the oldest operations that have ended, beyond those that are kept."""
        ended = OPERATION.c.state.in_([state.value for state in ENDED])
        old = select(OPERATION.c.id).where(ended).order_by(OPERATION.c.id.desc())
        with self._database.transaction() as connection:
            page = old.offset(ENDED_KEPT).limit(REMOVED_AT_ONCE)
            ids = list(connection.execute(page).scalars())
            if ids:
                connection.execute(LOG.delete().where(LOG.c.operation.in_(ids)))
                connection.execute(TASK.delete().where(TASK.c.operation.in_(ids)))
                connection.execute(OPERATION.delete().where(and_(OPERATION.c.id.in_(ids), ended)))
        return len(ids)

    def now_ms(self) -> int:
        """The cluster database's time."""
        return round(self._database.now().timestamp() * 1000)

    def _now_ms(self, connection: Connection) -> int:
        return round(self._database.now(connection).timestamp() * 1000)


def _by_key(connection: Connection, key: str, request: str) -> ClusterOperation | None:
    query = select(OPERATION).where(OPERATION.c.idempotency_key == key)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    if row.request != request:
        raise IdempotencyKeyError(
            f"the key {key} was used for another request: operation {row.id}",
            next_step="use a new key for each operation",
            operation=row.id,
        )
    return read_all(connection, [row])[0]


def _header(connection: Connection, id_: str) -> Any:
    row = connection.execute(select(OPERATION).where(OPERATION.c.id == id_)).one_or_none()
    if row is None:
        raise NotFoundError(
            f"there is no operation {id_}", next_step="tidegate operation list", operation=id_
        )
    return row


def _get(connection: Connection, id_: str) -> ClusterOperation:
    return read_all(connection, [_header(connection, id_)])[0]


def _entries(connection: Connection, where: ColumnElement[bool], limit: int | None) -> list[Entry]:
    query = (
        select(
            OPERATION.c.id,
            OPERATION.c.name,
            OPERATION.c.body,
            OPERATION.c.later,
            OPERATION.c.is_under_way,
            OPERATION.c.to_do,
            OPERATION.c.priority,
        )
        .where(where)
        .order_by(OPERATION.c.priority.desc(), OPERATION.c.id)
        .limit(limit)
    )
    return [_entry(row) for row in connection.execute(query)]


def _entry(row: Any) -> Entry:
    fields = fields_of(row)
    return Entry(
        row.id,
        row.name,
        fields["parameters"],
        bool(row.is_under_way),
        bool(row.to_do),
        row.priority,
        tuple(fields.get("servers", ())),
    )


class _OvertakenError(Exception):
    """Somebody else has written the version that was to be replaced; nothing was changed."""


def _replace(connection: Connection, before: ClusterOperation, after: ClusterOperation) -> None:
    unchanged = and_(OPERATION.c.id == before.id, OPERATION.c.version == before.version)
    done = connection.execute(OPERATION.update().where(unchanged).values(**columns(after)))
    if done.rowcount != 1:
        raise _OvertakenError
    write_tasks(connection, before, after)


def _logged(
    connection: Connection,
    operation: ClusterOperation,
    lines: Sequence[tuple[str, str]],
    now_ms: int,
) -> ClusterOperation:
    """Write lines to an operation's log; the operation with the number of the last one."""
    if not lines:
        return operation
    kept = lines[-LINES_KEPT:]
    rows = [
        {
            "operation": operation.id,
            "seq": seq,
            "at_ms": now_ms,
            "task": task,
            "line": redacted(line)[:LINE_MAX_CHARS],
        }
        for seq, (task, line) in enumerate(kept, start=operation.last_seq + 1)
    ]
    connection.execute(LOG.insert(), rows)
    last = operation.last_seq + len(rows)
    if last > LINES_KEPT:
        old = and_(LOG.c.operation == operation.id, LOG.c.seq <= last - LINES_KEPT)
        connection.execute(LOG.delete().where(old))
    return replace(operation, last_seq=last)
