"""Which batch of tenants a worker takes next.

Batches are looked at by ascending range, each at most once: one that somebody else holds is passed
over, one whose tenants were all dropped is noted and passed over, and the first with tenants is
taken. The batch with the largest id ends the search, whatever it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from tidegate.bootstrap.model import Batch


DOUBLINGS_MAX: Final = 6
"""How often a lease of batches is doubled at most: to an hour, from the usual minute."""


class Patience:
    """How long a worker holds a batch between two signs of life.

    Where many nodes wait for one write lock, a tenant's turn may outlast the lease: another worker
    takes the batch, loses it in turn, and none makes progress. So a worker that lost a batch asks
    for twice as long the next time; each batch that it finishes halves that again.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._doublings = 0

    @property
    def lease_s(self) -> float:
        """Of the next claim, in seconds."""
        return self._lease_s * 2.0**self._doublings

    def lost(self) -> None:
        """A batch was taken while its worker lived."""
        self._doublings = min(self._doublings + 1, DOUBLINGS_MAX)

    def kept(self) -> None:
        """A batch was worked on to its end."""
        self._doublings = max(self._doublings - 1, 0)


class Locked(Enum):
    """Somebody else works on the batch or on one of its tenants."""

    LOCKED = "locked"


LOCKED = Locked.LOCKED


@dataclass(frozen=True, slots=True)
class Claim:
    """What a search found.

    Attributes:
        batch: the one to take; None when there is none.
        tenants: its tenants that are still there, by ascending id.
        deleted: batches without any.
        saw_conflict: somebody else holds a batch: nothing may be tidied away now.
        looks: how many batches were looked at.
    """

    batch: Batch | None
    tenants: tuple[int, ...] = ()
    deleted: tuple[Batch, ...] = ()
    saw_conflict: bool = False
    looks: int = 0

    @property
    def saw_deleted(self) -> bool:
        """Whether a batch without tenants was met."""
        return bool(self.deleted)

    @property
    def may_repair(self) -> bool:
        """Whether batches without tenants may be closed: nobody holds any."""
        return self.batch is None and not self.saw_conflict


def choose(
    batches: Iterable[Batch],
    now: datetime,
    look: Callable[[Batch], Sequence[int] | Locked],
) -> Claim:
    """The batch to take.

    Args:
        batches: those of the step, in any order.
        now: the database's time.
        look: the tenants of a batch that are still there, or :data:`LOCKED`; it is asked for a
            batch at most once, and never for one that is ready, held, or not due.
    """
    deleted: list[Batch] = []
    saw_conflict = False
    looks = 0
    for batch in sorted((b for b in batches if not b.is_ready), key=lambda b: (b.first, b.number)):
        if batch.is_held(now):
            saw_conflict = True
            continue
        if batch.next_at is not None and batch.next_at > now:
            continue
        looks += 1
        seen = look(batch)
        if isinstance(seen, Locked):
            saw_conflict = True
        elif seen:
            found = tuple(sorted(seen))
            return Claim(batch, found, tuple(deleted), saw_conflict, looks)
        else:
            deleted.append(batch)
    return Claim(None, (), tuple(deleted), saw_conflict, looks)
