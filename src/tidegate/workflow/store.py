"""Keeps workflow records and the log of their steps in the cluster database.

Decides nothing about workflows: it reads, and writes by compare-and-swap on ``version``, in a
transaction that also proves the leases the writer works under. It holds the only statements on
these tables.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, Column, Float, Integer, MetaData, Table, Text, func, select
from sqlalchemy.exc import IntegrityError

from tidegate.cluster.leases import Leases
from tidegate.cluster.ledger import Update
from tidegate.errors import AlreadyExistsError, ConflictError, NotFoundError
from tidegate.workflow.model import Workflow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy import Connection

    from tidegate.cluster.database import ClusterDatabase
    from tidegate.cluster.leases import Lease

UPDATES: Final = (
    Update(
        "workflow.records",
        (
            """
            CREATE TABLE workflow (
                uuid text NOT NULL PRIMARY KEY,
                keyspace text NOT NULL,
                name text NOT NULL,
                version bigint NOT NULL,
                body text NOT NULL,
                UNIQUE (keyspace, name)
            )
            """,
            """
            CREATE TABLE workflow_step (
                uuid text NOT NULL,
                ordinal integer NOT NULL,
                keyspace text NOT NULL,
                name text NOT NULL,
                operation integer NOT NULL,
                kind text NOT NULL,
                step text NOT NULL,
                event text NOT NULL,
                took_ms double precision NOT NULL,
                at_ms bigint NOT NULL,
                PRIMARY KEY (uuid, ordinal)
            )
            """,
        ),
    ),
)
"""What this domain adds to the ledger of the cluster database."""

_META: Final = MetaData()
_WORKFLOW: Final = Table(
    "workflow",
    _META,
    Column("uuid", Text),
    Column("keyspace", Text),
    Column("name", Text),
    Column("version", BigInteger),
    Column("body", Text),
)
_STEP: Final = Table(
    "workflow_step",
    _META,
    Column("uuid", Text),
    Column("ordinal", Integer),
    Column("keyspace", Text),
    Column("name", Text),
    Column("operation", Integer),
    Column("kind", Text),
    Column("step", Text),
    Column("event", Text),
    Column("took_ms", Float),
    Column("at_ms", BigInteger),
)


@dataclass(frozen=True)
class StepEvent:
    """One line of a workflow's history."""

    operation: int
    kind: str
    step: str
    event: str
    took_ms: float
    at: datetime | None = None  # None: when it is written


class WorkflowStore:
    """All workflows of a cluster."""

    def __init__(self, database: ClusterDatabase) -> None:
        self._database = database
        self._leases = Leases(database)

    def all(self, keyspace: str | None = None) -> list[Workflow]:
        """Every workflow, or those of a target keyspace, by keyspace and name."""
        with self._database.read() as connection:
            return _all(connection, keyspace)

    def get(self, keyspace: str, name: str) -> Workflow:
        """The workflow of that name.

        Raises:
            NotFoundError: there is none.
        """
        found = self.find(keyspace, name)
        if found is None:
            raise NotFoundError(
                f"workflow {name!r} does not exist in keyspace {keyspace}",
                next_step="tidegate workflow list",
                keyspace=keyspace,
                workflow=name,
            )
        return found

    def find(self, keyspace: str, name: str) -> Workflow | None:
        """The workflow of that name, or None."""
        return next((w for w in self.all(keyspace) if w.name == name), None)

    def insert(
        self,
        workflow: Workflow,
        leases: Sequence[Lease] = (),
        *,
        guard: Callable[[Sequence[Workflow]], None] | None = None,
    ) -> Workflow:
        """Add a workflow.

        Args:
            workflow: its record.
            leases: under which it is made.
            guard: called with those there are, in the same transaction; refuses by raising.

        Raises:
            AlreadyExistsError: the name is taken in the target keyspace.
            LeaseLostError: a lease is not ours any more.
        """
        added = replace(workflow, version=1)
        try:
            with self._database.transaction() as connection:
                self.prove(connection, leases)
                if guard is not None:
                    guard(_all(connection))
                connection.execute(
                    _WORKFLOW.insert().values(
                        uuid=added.uuid,
                        keyspace=added.target_keyspace,
                        name=added.name,
                        version=added.version,
                        body=_body(added),
                    )
                )
        except IntegrityError:
            raise taken(workflow.target_keyspace, workflow.name) from None
        return added

    def save(self, workflow: Workflow, leases: Sequence[Lease] = ()) -> Workflow:
        """Replace a workflow; returns it with its new version.

        Raises:
            ConflictError: somebody changed it since it was read.
            LeaseLostError: a lease is not ours any more.
        """
        with self._database.transaction() as connection:
            self.prove(connection, leases)
            return self.save_in(connection, workflow)

    def save_in(self, connection: Connection, workflow: Workflow) -> Workflow:
        """As :meth:`save`, inside a transaction of the caller.

        Raises:
            ConflictError: somebody changed it since it was read; the transaction must not commit.
        """
        after = replace(workflow, version=workflow.version + 1)
        unchanged = (_WORKFLOW.c.uuid == workflow.uuid) & (_WORKFLOW.c.version == workflow.version)
        done = connection.execute(
            _WORKFLOW.update().where(unchanged).values(version=after.version, body=_body(after))
        )
        if done.rowcount != 1:
            raise _overtaken(workflow)
        return after

    def delete(self, workflow: Workflow, leases: Sequence[Lease] = ()) -> None:
        """Remove a workflow; its history stays.

        Raises:
            ConflictError: somebody changed it since it was read.
            LeaseLostError: a lease is not ours any more.
        """
        with self._database.transaction() as connection:
            self.prove(connection, leases)
            unchanged = (_WORKFLOW.c.uuid == workflow.uuid) & (
                _WORKFLOW.c.version == workflow.version
            )
            if connection.execute(_WORKFLOW.delete().where(unchanged)).rowcount != 1:
                raise _overtaken(workflow)

    def log(self, workflow: Workflow, events: Iterable[StepEvent]) -> None:
        """Append to a workflow's history; one transaction."""
        with self._database.transaction() as connection:
            last = connection.execute(
                select(func.max(_STEP.c.ordinal)).where(_STEP.c.uuid == workflow.uuid)
            ).scalar()
            now = self._database.now(connection)
            rows = [
                {
                    "uuid": workflow.uuid,
                    "ordinal": ordinal,
                    "keyspace": workflow.target_keyspace,
                    "name": workflow.name,
                    "operation": event.operation,
                    "kind": event.kind,
                    "step": event.step,
                    "event": event.event,
                    "took_ms": event.took_ms,
                    "at_ms": round((event.at or now).timestamp() * 1000),
                }
                for ordinal, event in enumerate(events, start=(last or 0) + 1)
            ]
            if rows:
                connection.execute(_STEP.insert(), rows)

    def history(self, uuid: str) -> list[StepEvent]:
        """What has been done for a workflow, oldest first."""
        query = select(_STEP).where(_STEP.c.uuid == uuid).order_by(_STEP.c.ordinal)
        with self._database.read() as connection:
            return [
                StepEvent(
                    row.operation,
                    row.kind,
                    row.step,
                    row.event,
                    row.took_ms,
                    datetime.fromtimestamp(row.at_ms / 1000, UTC),
                )
                for row in connection.execute(query)
            ]

    def durations(self, names: Sequence[str], operations: int) -> list[float]:
        """How long these steps took together, in the latest operations that did them all; seconds.

        Args:
            names: of the steps.
            operations: so many of them at most, of any workflow.
        """
        done = (
            select(
                func.sum(_STEP.c.took_ms).label("took_ms"), func.max(_STEP.c.at_ms).label("at_ms")
            )
            .where(_STEP.c.event == "done", _STEP.c.step.in_(names))
            .group_by(_STEP.c.uuid, _STEP.c.operation)
            .having(func.count() == len(names))
            .subquery()
        )
        query = select(done.c.took_ms).order_by(done.c.at_ms.desc()).limit(operations)
        with self._database.read() as connection:
            return [took_ms / 1000.0 for took_ms in connection.execute(query).scalars()]

    def now(self) -> datetime:
        """The cluster database's time."""
        return self._database.now()

    def prove(self, connection: Connection, leases: Sequence[Lease]) -> None:
        """Make sure that a transaction of the caller commits only under these leases.

        Raises:
            LeaseLostError: a lease is not ours any more.
        """
        for lease in leases:
            self._leases.check(connection, lease)


def taken(keyspace: str, name: str) -> AlreadyExistsError:
    """The error of a name that is in use."""
    return AlreadyExistsError(
        f"workflow {name!r} already exists in keyspace {keyspace}",
        next_step="choose another name, or cancel or complete that workflow first",
        keyspace=keyspace,
        workflow=name,
    )


def _overtaken(workflow: Workflow) -> ConflictError:
    return ConflictError(
        f"workflow {workflow.key} was changed by somebody else meanwhile",
        next_step="look at it again and repeat the command",
        workflow=workflow.name,
    )


def _all(connection: Connection, keyspace: str | None = None) -> list[Workflow]:
    query = select(_WORKFLOW.c.body, _WORKFLOW.c.version)
    if keyspace is not None:
        query = query.where(_WORKFLOW.c.keyspace == keyspace)
    rows = connection.execute(query.order_by(_WORKFLOW.c.keyspace, _WORKFLOW.c.name))
    return [_workflow(body, version) for body, version in rows]


def _body(workflow: Workflow) -> str:
    return json.dumps(workflow.to_json(), sort_keys=True)


def _workflow(body: str, version: int) -> Workflow:
    data: dict[str, Any] = json.loads(body)
    return replace(Workflow.from_json(data), version=version)
