"""The tables of cluster operations, and how an operation becomes rows and is read from them.

Decides nothing: an operation is one row, each of its tasks another one, so that a change writes
only the tasks it changes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text, and_, or_, select

from tidegate.cluster.ledger import Update
from tidegate.operations.decisions import can_be_claimed
from tidegate.operations.model import (
    ClusterOperation,
    OperationState,
    TaskContainer,
    TaskRecord,
    Wish,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection

TASKS_AT_ONCE: Final = 100
"""Operations whose tasks are read by one statement."""

UPDATES: Final = (
    Update(
        "operations.records",
        (
            """
            CREATE TABLE cluster_operation (
                id text NOT NULL PRIMARY KEY,
                name text NOT NULL,
                state text NOT NULL,
                version bigint NOT NULL,
                to_do integer NOT NULL,
                is_under_way integer NOT NULL,
                idempotency_key text UNIQUE,
                request text NOT NULL,
                body text NOT NULL
            )
            """,
            """
            CREATE TABLE cluster_operation_task (
                operation text NOT NULL,
                task text NOT NULL,
                body text NOT NULL,
                PRIMARY KEY (operation, task)
            )
            """,
            """
            CREATE TABLE cluster_operation_log (
                operation text NOT NULL,
                seq bigint NOT NULL,
                at_ms bigint NOT NULL,
                task text NOT NULL,
                line text NOT NULL,
                PRIMARY KEY (operation, seq)
            )
            """,
        ),
        older_works=True,
    ),
    Update(
        "operations.queue",
        (
            "ALTER TABLE cluster_operation ADD COLUMN priority integer NOT NULL DEFAULT 0",
            "ALTER TABLE cluster_operation ADD COLUMN caller text NOT NULL DEFAULT ''",
            "CREATE INDEX cluster_operation_queue ON cluster_operation (to_do, priority, id)",
            "CREATE INDEX cluster_operation_state ON cluster_operation (state)",
        ),
        older_works=True,
    ),
    Update(
        "operations.later",
        ("ALTER TABLE cluster_operation ADD COLUMN later text NOT NULL DEFAULT '{}'",),
        older_works=True,
    ),
)
"""What this domain adds to the ledger of the cluster database."""

_META: Final = MetaData()
OPERATION: Final = Table(
    "cluster_operation",
    _META,
    Column("id", Text),
    Column("name", Text),
    Column("state", Text),
    Column("version", BigInteger),
    Column("to_do", Integer),
    Column("is_under_way", Integer),
    Column("idempotency_key", Text),
    Column("request", Text),
    Column("priority", Integer),
    Column("caller", Text),
    Column("body", Text),
    Column("later", Text),
)
TASK: Final = Table(
    "cluster_operation_task",
    _META,
    Column("operation", Text),
    Column("task", Text),
    Column("body", Text),
)
LOG: Final = Table(
    "cluster_operation_log",
    _META,
    Column("operation", Text),
    Column("seq", BigInteger),
    Column("at_ms", BigInteger),
    Column("task", Text),
    Column("line", Text),
)
_KEPT_APART: Final = frozenset(
    {"id", "name", "state", "version", "serial_tasks", "priority", "caller"}
)
_LATER: Final = ("servers", "undo")
"""Fields that came after `body`. A program that does not know them reads `body` as a whole, so they
have a column of their own."""
_LATER_OF_TASK: Final[Mapping[str, object]] = {"is_undoable": False, "undoes": ""}
"""The same of a task, with what they are where nothing is stored: a program that does not know them
reads every task that makes no use of them."""


def read_all(connection: Connection, rows: Sequence[Any]) -> list[ClusterOperation]:
    """Operations from their rows and their tasks' rows."""
    tasks: dict[str, dict[str, TaskRecord]] = {row.id: {} for row in rows}
    ids = list(tasks)
    for first in range(0, len(ids), TASKS_AT_ONCE):
        some = ids[first : first + TASKS_AT_ONCE]
        query = select(TASK).where(or_(*(TASK.c.operation == each for each in some)))
        for row in connection.execute(query):
            tasks[row.operation][row.task] = TaskRecord.from_json(json.loads(row.body))
    return [_operation(row, tasks[row.id]) for row in rows]


def fields_of(row: Any) -> dict[str, Any]:
    """What an operation's own row says beside its columns, later fields included."""
    found: dict[str, Any] = json.loads(row.body) | json.loads(row.later)
    return found


def _operation(row: Any, tasks: dict[str, TaskRecord]) -> ClusterOperation:
    body: dict[str, Any] = fields_of(row)
    containers = tuple(
        _container(tuple(path), concurrency, size, tasks)
        for path, concurrency, size in body.pop("containers")
    )
    body |= {
        "wish": Wish(body["wish"]),
        "pause_before": tuple(body["pause_before"]),
        "approved": tuple(body["approved"]),
        "servers": tuple(body.get("servers", ())),
        "caller": row.caller or body.get("caller", ""),
    }
    return ClusterOperation(
        id=row.id,
        name=row.name,
        state=OperationState(row.state),
        version=row.version,
        priority=row.priority,
        serial_tasks=containers,
        **body,
    )


def _container(
    path: tuple[int, ...], concurrency: int, size: int, tasks: dict[str, TaskRecord]
) -> TaskContainer:
    empty = TaskContainer(path=path, concurrency=concurrency)
    return replace(empty, tasks=tuple(tasks[empty.key(n)] for n in range(1, size + 1)))


def columns(operation: ClusterOperation) -> dict[str, Any]:
    """What an operation's own row says."""
    fields = {name: getattr(operation, name) for name in ClusterOperation.__slots__}
    body = {k: v for k, v in fields.items() if k not in _KEPT_APART and k not in _LATER}
    body["containers"] = [[c.path, c.concurrency, len(c.tasks)] for c in operation.serial_tasks]
    body["parameters"] = dict(operation.parameters)
    return {
        "id": operation.id,
        "name": operation.name,
        "state": operation.state.value,
        "version": operation.version,
        "to_do": int(can_be_claimed(operation)),
        "is_under_way": int(operation.is_under_way),
        "priority": operation.priority,
        "caller": operation.caller,
        "body": json.dumps(body, sort_keys=True),
        "later": json.dumps({name: fields[name] for name in _LATER}),
    }


def _task_body(task: TaskRecord) -> str:
    later = _LATER_OF_TASK
    said = {k: v for k, v in task.to_json().items() if k not in later or v != later[k]}
    return json.dumps(said)


def write_tasks(
    connection: Connection, before: ClusterOperation | None, after: ClusterOperation
) -> None:
    """Write the tasks that differ from ``before``, and those that are new."""
    known = {} if before is None else dict(before.tasks())
    added = []
    for key, task in after.tasks():
        if key not in known:
            added.append({"operation": after.id, "task": key, "body": _task_body(task)})
        elif task != known[key]:
            mine = and_(TASK.c.operation == after.id, TASK.c.task == key)
            connection.execute(TASK.update().where(mine).values(body=_task_body(task)))
    if added:
        connection.execute(TASK.insert(), added)
