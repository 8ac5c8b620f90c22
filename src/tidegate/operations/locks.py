"""What an operation keeps others from: a resource, as a whole or a range of it.

Decides whether two locks are in each other's way. It knows neither keyspaces nor key ranges: a
resource is a text, and a range is two byte strings in byte order, where an empty end is the
maximum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class OperationLock:
    """A resource such as ``keyspace commerce``, from ``start`` up to, without, ``end``."""

    resource: str
    start: bytes = b""
    end: bytes = b""

    def overlaps(self, other: OperationLock) -> bool:
        """Whether two operations that need these locks must not be under way together."""
        return (
            self.resource == other.resource
            and (not other.end or self.start < other.end)
            and (not self.end or other.start < self.end)
        )


def in_the_way(
    wanted: Iterable[OperationLock], held: Iterable[OperationLock]
) -> OperationLock | None:
    """The first lock held that overlaps one that is wanted."""
    theirs = tuple(held)
    return next((lock for want in wanted for lock in theirs if want.overlaps(lock)), None)
