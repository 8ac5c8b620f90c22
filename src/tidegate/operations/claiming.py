"""Which operations a runner takes next, and which have to wait for others that hold their locks.

Decides from values alone: the queue, in its order; what is under way anywhere; what this runner
works on. An operation that is under way already (its runner left it, or a person let it go on)
has its locks and is taken in its turn, whatever the limits say. One that has not begun waits while
another one whose locks overlap its own is under way, or is about to be taken; and while as many of
its kind, or at one of its database servers, are worked on as the limits allow. One that is paused,
or waits for an approval, keeps its locks and does not count for the limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tidegate.operations.decisions import can_be_claimed
from tidegate.operations.locks import in_the_way
from tidegate.operations.store import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from tidegate.operations.locks import OperationLock
    from tidegate.operations.model import ClusterOperation

    type LocksOf = Callable[[Entry], Sequence[OperationLock]]


@dataclass(frozen=True, slots=True)
class Limits:
    """How many operations are worked on at once; 0: no limit.

    Attributes:
        of_kind: by the name of the operation.
        per_server: at one database server.
    """

    of_kind: Mapping[str, int]
    per_server: int = 0


UNLIMITED: Final = Limits({})


def entry_of(operation: ClusterOperation) -> Entry:
    """What decides whether an operation may begin."""
    return Entry(
        operation.id,
        operation.name,
        operation.parameters,
        operation.is_under_way,
        can_be_claimed(operation),
        operation.priority,
        operation.servers,
    )


def blocked_by(
    wanted: Entry, others: Iterable[Entry], locks_of: LocksOf, limits: Limits = UNLIMITED
) -> tuple[Entry, str] | None:
    """The operation that keeps another one from beginning, and what it holds."""
    if wanted.is_under_way:
        return None
    theirs = {other.id: other for other in others if other.id != wanted.id}.values()
    mine = locks_of(wanted)
    for other in theirs:
        if (lock := in_the_way(mine, locks_of(other))) is not None:
            return other, lock.resource
    return _limited_by(wanted, [other for other in theirs if other.is_working], limits)


def _limited_by(
    wanted: Entry, working: Sequence[Entry], limits: Limits
) -> tuple[Entry, str] | None:
    most = limits.of_kind.get(wanted.name, 0)
    same = [other for other in working if other.name == wanted.name]
    if most and len(same) >= most:
        return same[-1], f"the last place for {wanted.name} (at most {most} at once)"
    for server in wanted.servers if limits.per_server else ():
        there = [other for other in working if server in other.servers]
        if len(there) >= limits.per_server:
            return there[-1], f"the last place at server {server} ({limits.per_server} at once)"
    return None


def to_claim(
    queue: Sequence[Entry],
    under_way: Sequence[Entry],
    mine: Collection[str],
    locks_of: LocksOf,
    room: int,
    *,
    limits: Limits = UNLIMITED,
) -> list[Entry]:
    """The operations to take now, at most ``room``."""
    taken: list[Entry] = []
    held = [*under_way, *(entry for entry in queue if entry.id in mine)]
    for entry in queue:
        if len(taken) >= room:
            break
        if entry.id in mine or blocked_by(entry, held, locks_of, limits) is not None:
            continue
        taken.append(entry)
        held.append(entry)
    return taken
