"""Warns of sources with little room for the log that a slot keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.checks import MIB, Asked, Check, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.engines.postgres.capacity import Capacity
    from tidegate.engines.postgres.facts import Sides


def find(_request: Asked, facts: Sides) -> Iterator[Problem]:
    """Sources whose limit for the log of a slot is smaller than the tables."""
    for database in facts.sources:
        size = sum(database.tables[name].bytes for name in facts.wanted if name in database.tables)
        limit = database.capacity.limit_bytes
        if limit is not None and limit < size:
            yield Problem(
                database.label,
                f"{_bound(database.capacity, limit)}, the tables have {_mib(size)};"
                f" streams stop when {_mib(limit)} of log are kept",
                details={
                    "limit_bytes": limit,
                    "source_of_limit": database.capacity.source_of_limit,
                    "tables_bytes": size,
                },
            )


def _bound(capacity: Capacity, limit: int) -> str:
    """Where the limit comes from, in the operator's own figures."""
    if capacity.source_of_limit == "budget":
        return f"the budget for the log is {_mib(limit)}"
    if capacity.source_of_limit == "max_slot_wal_keep_size":
        return f"max_slot_wal_keep_size is {_mib(2 * limit)}"
    return f"{_mib(capacity.free_bytes or 0)} are free for the log"


def _mib(count: int) -> str:
    return f"{count / MIB:.1f} MiB" if count < MIB else f"{count // MIB} MiB"


CHECK = Check(
    id="TG-PF-312",
    title="The source may not be able to keep the log",
    severity=Severity.WARNING,
    cause=(
        "The slot keeps the source's log from the start of the copy until it is caught up; "
        "when the room for it ends, the slot is lost or the disk is full."
    ),
    remedy="make room, or raise max_slot_wal_keep_size or --log-budget for the time of the copy",
    find=find,
)
