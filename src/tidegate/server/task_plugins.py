"""Tasks of users' own: entry points of the group ``tidegate.tasks`` in the node's environment.

Decides which are taken: each a class made from :class:`tidegate.operations.tasks.Task`, without
arguments to be made with. One that cannot be loaded is logged and left out, so that it does not
keep the node from starting; operations that need it are parked until it is there.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Final

import structlog

from tidegate.operations.tasks import Task

GROUP: Final = "tidegate.tasks"

log = structlog.get_logger("tidegate.operations")


def own_tasks() -> dict[str, Task]:
    """The tasks that are installed, by the names of their entry points."""
    found: dict[str, Task] = {}
    for point in entry_points(group=GROUP):
        try:
            task = point.load()()
            if not isinstance(task, Task):
                raise TypeError(f"{point.value} is not a tidegate.operations.tasks.Task")  # noqa: TRY301
            found[point.name] = task
        except Exception:
            log.exception("task left out", name=point.name, value=point.value)
    return found
