"""An operation as the API shows it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from tidegate.operations.model import ENDED, TaskState, path_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tidegate.operations.model import ClusterOperation, TaskRecord
    from tidegate.operations.store import LogLine


_DONE: Final = frozenset({TaskState.SUCCEEDED, TaskState.SKIPPED})


def brief(operation: ClusterOperation) -> dict[str, Any]:
    """An operation as a list shows it."""
    tasks = [task for _, task in operation.tasks()]
    return {
        "id": operation.id,
        "name": operation.name,
        "parameters": dict(operation.parameters),
        "state": operation.state.value,
        "wish": operation.wish.value,
        "why": operation.why,
        "error": operation.error,
        "tasks_done": sum(task.state in _DONE for task in tasks),
        "tasks": len(tasks),
        "caller": operation.caller,
        "priority": operation.priority,
        "created_at": shown_time(operation.created_at_ms),
        "started_at": shown_time(operation.started_at_ms),
        "ended_at": shown_time(operation.ended_at_ms),
        "version": operation.version,
    }


def followed(operation: ClusterOperation) -> dict[str, Any]:
    """An operation as those see it who follow it."""
    return {**brief(operation), "last_seq": operation.last_seq}


def has_ended(followed_one: Mapping[str, Any]) -> bool:
    """Whether an operation as it is shown has ended."""
    return followed_one["state"] in ENDED


def details(operation: ClusterOperation) -> dict[str, Any]:
    """An operation with its containers and tasks."""
    containers = [
        {
            "path": path_text(container.path),
            "concurrency": container.concurrency,
            "tasks": [
                {"key": container.key(number), **_task(task)}
                for number, task in enumerate(container.tasks, start=1)
            ],
        }
        for container in operation.serial_tasks
    ]
    return {
        **brief(operation),
        "servers": list(operation.servers),
        "undo": operation.undo,
        "pause_before": list(operation.pause_before),
        "approved": list(operation.approved),
        "recoveries": operation.recoveries,
        "last_seq": operation.last_seq,
        "containers": containers,
    }


def _task(task: TaskRecord) -> dict[str, Any]:
    found = task.to_json()
    for name in ("not_before", "started_at", "ended_at"):
        found[name] = shown_time(found.pop(f"{name}_ms"))
    return found


def line(found: LogLine) -> dict[str, Any]:
    """A line of a log."""
    return {
        "seq": found.seq,
        "at": shown_time(found.at_ms),
        "task": found.task,
        "line": found.line,
    }


def shown_time(at_ms: int | None) -> str | None:
    """A time as the API has it."""
    if at_ms is None:
        return None
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
