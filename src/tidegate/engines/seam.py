"""What a database must offer so that rows can be moved from and to it: values and protocols only.

Decides the line between the rooms that move rows and the engines, which know one database's SQL
and wire. A :class:`Session` is one connection; what can be done over it is grouped by what it is
about. Nothing here is PostgreSQL's: an engine without slots, without transactional DDL and without
messages in its log can keep these promises with other statements.

Unless a method says otherwise it is one statement, runs in the transaction that the session is in,
and raises what the driver raises. Positions and bounds are integers of the stream's source, in the
order of its log.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from datetime import datetime, timedelta
    from types import TracebackType

    from tidegate.engines.failures import FailurePhase
    from tidegate.errors import TidegateError
    from tidegate.topology.connections import Endpoint
    from tidegate.topology.names import TableName

_LINE_DIGITS: Final = 12


def _nothing_to_prove() -> None:
    """A mark whose number nobody can overtake unnoticed."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a line of successors.

    Attributes:
        line: hexadecimal digits that stand for the line's name.
        number: rises from each holder to the next.
        proof: raises once the number has been overtaken.
    """

    line: str
    number: int
    proof: Callable[[], object] = field(default=_nothing_to_prove, compare=False)

    @classmethod
    def of(cls, name: str, number: int, proof: Callable[[], object] = _nothing_to_prove) -> Self:
        """The mark of a line with a name that is unique among all clusters of a server."""
        digits = hashlib.sha256(name.encode()).hexdigest()[:_LINE_DIGITS]
        return cls(digits, number, proof)


#: H of a stream that waits for rows to be read again: no position reaches it.
H_UNKNOWN = 0xFFFF_FFFF_FFFF_FFFF


class LockedError(Exception):
    """Another session holds a lock, and did for as long as was to be waited; says where to look."""


@dataclass(frozen=True, kw_only=True)
class StreamFacts:
    """What a stream's row is made from: whose it is, from where to where, and its first state."""

    workflow_uuid: str
    workflow: str
    direction: str
    source_keyspace: str
    source_shard: str
    target_keyspace: str
    target_shard: str
    spec: dict[str, Any] = field(default_factory=dict)
    state: str
    message: str = ""
    epoch: int = 0


@dataclass(frozen=True, kw_only=True)
class StreamRecord(StreamFacts):
    """A stream's row as it is stored; positions are ``None`` where not known yet."""

    id: int
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


@dataclass(frozen=True)
class Control:
    """What a stream's row tells its worker."""

    epoch: int
    state: str
    message: str
    lsn: int | None
    h_lsn: int | None
    stop_lsn: int | None
    holding: bool  # the stop position, or the present one without it, is to be held for now
    accounts: dict[str, list[int]] | None = None

    @property
    def exact(self) -> bool:
        """The rows are exactly the source's at ``lsn``."""
        return self.lsn is not None and self.h_lsn is not None and self.lsn >= self.h_lsn


@dataclass(frozen=True)
class Action:
    """A statement that waits, of a table: an index, or a constraint."""

    workflow_uuid: str
    table: str
    ordinal: int
    statement: str


class ActionFailedError(Exception):
    """A statement was refused, in the database's words, and trying again alone does not help.

    Attributes:
        of_rows: rows are the cause, rather than the statement or the server.
        may_pass: of a kind that passes once missing rows are there, or surplus ones are gone.
    """

    def __init__(self, said: str, *, of_rows: bool, may_pass: bool) -> None:
        super().__init__(said)
        self.of_rows, self.may_pass = of_rows, may_pass


@dataclass(frozen=True)
class JournalEntry:
    """One journal: which switch of which direction, and all that ends it."""

    direction: str
    ordinal: int
    body: dict[str, Any]


@dataclass(frozen=True)
class SwitchKey:
    """Which switch: the workflow, the direction of its streams, and the operation's number."""

    workflow_uuid: str
    direction: str
    ordinal: int


class Position(Protocol):
    """A place in one server's log, opaque outside its engine."""

    def to_json(self) -> dict[str, Any]:
        """As stored and shown."""


class Streams(Protocol):
    """The rows of streams at their target; which change is allowed, the data plane decides."""

    def are_installed(self) -> bool:
        """Whether this database has rows of streams at all."""

    def insert(self, facts: StreamFacts, position: Position | None) -> int | None:
        """Insert a row and return its id; None: the workflow has one for direction and source.

        A stream that starts at a position, the end of its source's log at this moment, has its
        first heartbeat from here.
        """

    def read(self, stream_id: int) -> StreamRecord | None:
        """One row; None when there is none."""

    def read_all(self, workflow_uuid: str | None, direction: str | None) -> list[StreamRecord]:
        """All rows, or those of one workflow (and direction), by id."""

    def lock(self, stream_id: int) -> tuple[str, str] | None:
        """State and message of a row, locked until the transaction ends; None when it is gone."""

    def set_state(self, stream_id: int, state: str, message: str, *, active: bool) -> None:
        """Store a state; ``active`` ends a hold and forgets a stop position that was reached."""

    def tell(
        self, stream_id: int, epoch: int, message: str, before: Sequence[str], after: str | None
    ) -> str | None:
        """Store a message, and a state unless None, where the epoch is no newer; the state then.

        None: the row is in none of the states ``before``, or belongs to a newer epoch.
        """

    def set_stop(
        self, stream_ids: Sequence[int], lsn: int | None, hold_for: timedelta | None
    ) -> None:
        """Set where streams stop, and for how long they are held there; None: for good."""

    def delete(self, workflow_uuid: str, direction: str) -> int:
        """Delete a workflow's rows, and with the last of them what waited for its copy."""

    def log(self, stream_id: int, state: str, message: str, code: str = "") -> None:
        """Add to a stream's log; the same state, message and error code only count up."""

    def notify(self, stream_id: int | None = None) -> None:
        """Wake the workers that serve this shard; heard when the transaction commits."""

    def ask(self, question: str, stream_ids: Iterable[int]) -> set[int]:
        """Notify ``question`` and id for each stream whose worker has a session here; those ids."""

    def listen(self) -> None:
        """Have what is notified at this shard delivered to this session; ends a wait for it."""

    def heard(self) -> list[str]:
        """What was notified since the last call; does not wait."""

    def stop_listening(self) -> None:
        """End that; a session that is lost may be told so, too."""

    def silent(self, state: str, least: timedelta, most: timedelta) -> list[int]:
        """Streams in a state whose last heartbeat is so old, by the shard's clock."""

    def record_backend(self, stream_id: int, epoch: int) -> bool:
        """Note this session in the row, so that a take-over can end it; whether it is ours."""

    def end_backends(self, stream_id: int) -> None:
        """End the sessions of ours that the row names; transactions of theirs roll back."""

    def raise_epoch(self, stream_id: int, epoch: int, wait_s: float) -> bool:
        """Give the row a higher epoch and no sessions; whether its own was lower.

        Raises:
            LockedError: the row was not free within ``wait_s``; the transaction is lost.
        """

    def epochs(self, workflow_uuid: str) -> list[int]:
        """The epochs of a workflow's rows; empty where nothing of ours is installed."""

    def raise_epochs(self, workflow_uuid: str, epoch: int) -> None:
        """Give a workflow's rows at least this epoch; workers of lower ones stop."""

    def begin_copy(
        self, stream_id: int, epoch: int, position: Position, *, before: Sequence[str], after: str
    ) -> bool:
        """Store the first position where there is none, and ``after``; whether the row is ours."""

    def count_copied(self, stream_id: int, epoch: int) -> None:
        """Count the copied rows and renew the heartbeat, unless the row is locked."""

    def end_copy(
        self,
        stream_id: int,
        epoch: int,
        h_lsn: int,
        *,
        before: Sequence[str],
        after: str,
        message: str,
    ) -> tuple[str, str] | None:
        """Store H where there is none, and the counts; state and message then, None: not ours.

        State and message become those given where the state is one of ``before``.
        """

    def observe(
        self, stream_id: int, epoch: int, tables: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Store what the source's tables looked like first; what is stored, None: not ours."""

    def observe_again(self, stream_id: int, epoch: int, tables: Mapping[str, Any]) -> None:
        """Store a later look at the tables, unless the row is locked; its own transaction."""

    def forget_observed(self, stream_id: int) -> None:
        """Have the tables looked at as if for the first time."""

    def shown(self, lsn: int) -> str:
        """A position as people read it."""


class Actions(Protocol):
    """What waits at a target for the copy or for H: indexes and constraints."""

    def turn(self, workflow_uuid: str) -> AbstractContextManager[None]:
        """While it is entered no other session works on the actions of a workflow."""

    def are_ready(self, workflow_uuid: str, phase: str) -> bool:
        """Whether all streams of the workflow at this shard have come so far."""

    def waiting(self, workflow_uuid: str, phase: str) -> list[Action]:
        """The actions of a phase that are not done, in order."""

    def are_unfinished(self, workflow_uuid: str) -> bool:
        """Whether any is not done; no where nothing of ours is installed."""

    def run(self, action: Action) -> None:
        """Run one and note that it is done, both or neither; its own transaction.

        Raises:
            ActionFailedError: it was refused.
        """

    def put_off(self, action: Action) -> None:
        """Have one wait for H."""

    def rows_are_on_their_way(self, workflow_uuid: str) -> bool:
        """Whether a row may be missing, or be there twice, until streams have come further."""

    def analyze(self, table: TableName) -> None:
        """Gather statistics of a table."""


class Journal(Protocol):
    """The journal of a switch at its source shards: the point of no return, and the door before it.

    A switch first announces itself at every source. A journal can only be written where its
    announcement still stands; whoever takes over removes that everywhere and then looks. To
    announce, to write and to close is a transaction each; the session is in autocommit.
    """

    def announce(self, key: SwitchKey, token: str) -> None:
        """Open the door for the journal of a switch, to whoever knows the token.

        Raises:
            ConflictError: a later switch has begun.
        """

    def latest(self, key: SwitchKey, *, token: str | None = None) -> AbstractContextManager[None]:
        """A transaction that commits only while no later switch of the workflow is known here.

        Args:
            key: which switch.
            token: of its announcement at this shard, which must still stand; None where the caller
                has closed the shard, or the shard is not a source of the switch.

        Raises:
            ConflictError: a later switch has begun, or the announcement is gone.
        """

    def write(self, key: SwitchKey, body: dict[str, Any], token: str | None) -> None:
        """Write the journal; one that is there already stays as it is.

        Args:
            key: which switch.
            body: all that a third party needs to end the switch.
            token: of the announcement, which must still stand; None only for whoever has closed
                every source and found a journal at one of them.

        Raises:
            ConflictError: the announcement is gone: somebody else has decided about this switch.
        """

    def close(self, key: SwitchKey) -> bool:
        """Shut the door and say whether the journal is there."""

    def entries(self, workflow_uuid: str) -> list[JournalEntry]:
        """The journals of a workflow here, oldest first; none where nothing is installed."""

    def delete(self, workflow_uuid: str) -> None:
        """Forget a workflow at this shard."""


class Log(Protocol):
    """A source's log."""

    def mark(self, content: str) -> int:
        """Write a marker and return the bound: where it ends. Its own transaction, durable.

        Everything committed before the call lies below it.
        """


class Session(Protocol):
    """One connection to a database, for one thread."""

    @property
    def streams(self) -> Streams:
        """The streams whose target this is."""

    @property
    def actions(self) -> Actions:
        """What waits at this target for rows."""

    @property
    def journal(self) -> Journal:
        """The journals of switches whose source this is."""

    @property
    def log(self) -> Log:
        """The log of this database as a source."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
        /,
    ) -> None: ...

    def transaction(self) -> AbstractContextManager[object]:
        """A transaction, undone when left by an exception; within another, a part of that."""

    def fileno(self) -> int:
        """The socket, to wait for what is notified."""

    def clock(self) -> datetime:
        """The database's time now, not that of the transaction's start."""


class Engine(Protocol):
    """One kind of database."""

    @property
    def errors(self) -> type[Exception]:
        """What its driver raises, all of it."""

    def connect(self, endpoint: Endpoint, *, purpose: str, lock_timeout_s: float = ...) -> Session:
        """Open a session in autocommit; closed when it is left as a context.

        Args:
            endpoint: where, and the reference of the password.
            purpose: shown to the database's people.
            lock_timeout_s: how long one lock is waited for, in seconds.

        Raises:
            ConnectError, SecretError, InvalidArgumentError, FailedPreconditionError: there is none.
        """

    def mark_process(self, mark: Mark) -> None:
        """Say whose sessions all those are that this process opens."""

    def failure(self, error: Exception, phase: FailurePhase) -> TidegateError:
        """What an error of the driver means for the work, in our words and without secrets."""
