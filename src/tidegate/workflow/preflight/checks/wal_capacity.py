"""Warns of sources with little room for the log that a slot keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.workflow.preflight.check import Check, Problem, Severity
from tidegate.workflow.preflight.shape import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.workflow.preflight.facts import Facts, PreflightRequest


def find(_request: PreflightRequest, facts: Facts) -> Iterator[Problem]:
    """Sources whose limit for a slot's log, or whose free room, is small beside the tables."""
    for database in facts.sources:
        size = sum(database.tables[name].bytes for name in facts.wanted if name in database.tables)
        limit = database.server.slot_wal_limit_bytes
        if limit is not None and limit < size:
            yield Problem(
                database.label,
                f"max_slot_wal_keep_size is {limit // MIB} MiB, the tables have {size // MIB} MiB",
            )
        free = database.capacity.wal_free_bytes
        if free is not None and free // 2 < size:
            yield Problem(
                database.label,
                f"{free // MIB} MiB are free for the log, the tables have {size // MIB} MiB;"
                " streams stop when half of the room is used",
            )


CHECK = Check(
    id="TG-PF-312",
    title="The source may not be able to keep the log",
    severity=Severity.WARNING,
    cause=(
        "The slot keeps the source's log from the start of the copy until it is caught up; "
        "when the room for it ends, the slot is lost or the disk is full."
    ),
    remedy="make room, or raise max_slot_wal_keep_size for the time of the copy",
    find=find,
)
