"""Which operations a runner takes next, and which have to wait for others that hold their locks.

Decides from values alone: the queue, oldest first; what is under way anywhere; what this runner
works on. An operation that is under way already (its runner left it) has its locks and is taken
first come, first served, like all others. One that has not begun waits while an older one that it
overlaps is under way, or is about to be taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.operations.locks import in_the_way
from tidegate.operations.store import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from tidegate.operations.locks import OperationLock
    from tidegate.operations.model import ClusterOperation

    type LocksOf = Callable[[Entry], Sequence[OperationLock]]


def entry_of(operation: ClusterOperation) -> Entry:
    """What decides whether an operation may begin."""
    return Entry(operation.id, operation.name, operation.parameters, operation.is_under_way)


def blocked_by(
    wanted: Entry, others: Iterable[Entry], locks_of: LocksOf
) -> tuple[Entry, str] | None:
    """The operation that keeps another one from beginning, and the resource it holds."""
    if wanted.is_under_way:
        return None
    mine = locks_of(wanted)
    for other in others:
        if other.id != wanted.id and (lock := in_the_way(mine, locks_of(other))) is not None:
            return other, lock.resource
    return None


def to_claim(
    queue: Sequence[Entry],
    under_way: Sequence[Entry],
    mine: Collection[str],
    locks_of: LocksOf,
    room: int,
) -> list[Entry]:
    """The operations to take now, at most ``room``."""
    taken: list[Entry] = []
    held = list(under_way)
    for entry in queue:
        if len(taken) >= room:
            break
        if entry.id in mine or blocked_by(entry, held, locks_of) is not None:
            continue
        taken.append(entry)
        held.append(entry)
    return taken
