"""Sessions to the primaries of a workflow's shards, for as long as one operation runs.

Decides that there is one session for each shard, opened when first needed and opened again when it
broke, and that work on several shards runs side by side. It must not know what the work is.

Sessions are opened before the pause of a switch: connecting costs more than everything else in it.

Sessions of an operation carry its mark. The first thing such a session does is to end what earlier
operations on the same workflow left open at its server, so that nothing waits for a predecessor
that has gone silent, and nothing that it sent can take effect later.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Self

import psycopg

from tidegate import waits
from tidegate.engines.failures import FailurePhase
from tidegate.engines.postgres import event_triggers, predecessors
from tidegate.engines.postgres.connection import LOCK_TIMEOUT_S, connect, set_lock_timeout
from tidegate.engines.postgres.schema_pair import SchemaPair
from tidegate.engines.postgres.sqlstates import translated
from tidegate.errors import InvalidArgumentError, TidegateError
from tidegate.topology.connections import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from tidegate.engines.postgres.session import PostgresSession
    from tidegate.engines.seam import Mark
    from tidegate.topology.model import Snapshot
    from tidegate.workflow.model import Workflow
    from tidegate.workflow.requests import SchemaRequest

PARALLEL_MAX = 16
IDLE_TRANSACTION_S = 60.0
"""No step leaves a transaction open between two statements for nearly so long."""
SCHEMA_IDLE_S = 300.0
"""While one side is read, the other one's transaction waits."""


def endpoint_of(snapshot: Snapshot, keyspace: str, shard: str) -> Endpoint:
    """Where the primary of a shard is."""
    tablet = snapshot.primary_of(keyspace, shard)
    return Endpoint(tablet.conninfo, tablet.secret)


def require_answer(endpoint: Endpoint) -> None:
    """Make sure that a server takes a session.

    Raises:
        ConnectError: it does not.
    """
    connect(endpoint, purpose="health").close()


def endpoints_of(snapshot: Snapshot, workflow: Workflow) -> list[Endpoint]:
    """Where the primaries of a workflow's shards are; those that have none are left out."""
    found = []
    for keyspace, shard in workflow.places():
        with suppress(TidegateError):
            found.append(endpoint_of(snapshot, keyspace, shard))
    return found


def named_errors(where: str) -> AbstractContextManager[None]:
    """Turn what a session raises into an error that names the place.

    Raises:
        TidegateError: what it means for a workflow.
    """
    return translated(FailurePhase.WORKFLOW, where)


@contextmanager
def schema_pair(snapshot: Snapshot, request: SchemaRequest) -> Iterator[SchemaPair]:
    """Open a session at each side of a copy of a schema.

    Raises:
        NotFoundError: a shard or tablet does not exist.
        InvalidArgumentError: the tablet is another shard's.
        ConnectError: a server cannot be reached, or a session broke.
    """
    source = snapshot.primary_of(request.source_keyspace, request.source_shard)
    if request.source_tablet is not None:
        source = snapshot.tablet(request.source_tablet)
        if (source.keyspace, source.shard) != (request.source_keyspace, request.source_shard):
            raise InvalidArgumentError(
                f"tablet {source.alias} is of {source.keyspace}/{source.shard},"
                f" not of {request.source}",
                next_step="tidegate tablet list",
            )
    reads = Endpoint(source.conninfo, source.secret)
    makes = endpoint_of(snapshot, request.target_keyspace, request.target_shard)
    with (
        named_errors(f"{request.source} or {request.target}"),
        connect(reads, purpose="schema", idle_transaction_s=SCHEMA_IDLE_S) as reading,
        connect(makes, purpose="schema", idle_transaction_s=SCHEMA_IDLE_S) as making,
        event_triggers.named(making),
    ):
        yield SchemaPair(reading, making, reads)


class Sessions:
    """One session a shard; may be used from several threads, each shard by one at a time."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        purpose: str,
        lock_timeout_s: float = 5.0,
        mark: Mark | None = None,
    ) -> None:
        self.mark = mark
        self._snapshot = snapshot
        self._purpose = purpose
        self._lock_timeout_s = lock_timeout_s
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str], PostgresSession] = {}
        self._pool = ThreadPoolExecutor(PARALLEL_MAX, thread_name_prefix="workflow")

    def endpoint(self, keyspace: str, shard: str) -> Endpoint:
        """Where the primary of a shard is."""
        return endpoint_of(self._snapshot, keyspace, shard)

    def get(self, keyspace: str, shard: str) -> PostgresSession:
        """The session of a shard, in autocommit mode.

        Raises:
            ConnectError: the server cannot be reached.
            LeaseLostError: somebody else has the workflow by now.
            WaitTimeoutError: a session of a predecessor does not end.
        """
        with self._lock:
            found = self._open.get((keyspace, shard))
        if found is not None and not found.closed and not found.broken:
            return found
        made = connect(
            self.endpoint(keyspace, shard),
            purpose=self._purpose,
            lock_timeout_s=self._lock_timeout_s,
            idle_transaction_s=IDLE_TRANSACTION_S,
            mark=self.mark,
        )
        if self.mark is not None:
            try:
                predecessors.end(made, self.mark)
            except BaseException:
                made.close()
                raise
        with self._lock:
            self._open[keyspace, shard] = made
        return made

    def each[T](
        self,
        keyspace: str,
        shards: Iterable[str],
        work: Callable[[str, PostgresSession], T],
    ) -> dict[str, T]:
        """Do the same at several shards side by side; waits for all, also when one fails.

        Raises:
            TidegateError: the first shard's error in order, naming the shard; the others' errors
                are in its ``details``.
        """

        def one(shard: str) -> T:
            with named_errors(f"{keyspace}/{shard}"), waits.at(f"{keyspace}/{shard}"):
                session = self.get(keyspace, shard)
                with event_triggers.named(session):
                    return work(shard, session)

        names = list(shards)
        if len(names) == 1:
            return {names[0]: one(names[0])}
        futures = {shard: self._pool.submit(waits.carried(one), shard) for shard in names}
        results: dict[str, T] = {}
        failures: dict[str, BaseException] = {}
        for shard, future in futures.items():
            try:
                results[shard] = future.result()
            except Exception as error:  # noqa: BLE001 - every shard is waited for
                failures[shard] = error
        if failures:
            shard, first = next(iter(failures.items()))
            if isinstance(first, TidegateError) and len(failures) > 1:
                first.details.setdefault("shards", {s: str(e) for s, e in failures.items()})
            first.add_note(f"at {keyspace}/{shard}")
            raise first
        return results

    def close(self) -> None:
        """Close every session."""
        self._pool.shutdown(wait=True)
        for session in self._open.values():
            with suppress(psycopg.Error):
                session.close()
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()


@contextmanager
def hurried(session: PostgresSession, left_s: float) -> Iterator[None]:
    """Locks are waited for no longer than ``left_s``, seconds."""
    set_lock_timeout(session, left_s)
    try:
        yield
    finally:
        if not session.broken:
            set_lock_timeout(session, LOCK_TIMEOUT_S)
