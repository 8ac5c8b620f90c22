"""A stream's row as a value; positions are integers of its source.

What is stored is :class:`tidegate.engines.seam.StreamRecord`; what may be done with a row is in
:mod:`tidegate.dataplane.streams`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tidegate.dataplane.model import FROZEN, Direction, StreamState
from tidegate.dataplane.stream_states import ACTIVE
from tidegate.engines.seam import StreamRecord

if TYPE_CHECKING:
    from typing import Any


@dataclass(frozen=True, kw_only=True)
class StreamRow(StreamRecord):
    """One stream as its row says."""

    direction: Direction
    state: StreamState

    @classmethod
    def of(cls, record: StreamRecord) -> Self:
        """The row as it was stored."""
        facts: dict[str, Any] = vars(record)
        read = {"direction": Direction(record.direction), "state": StreamState(record.state)}
        return cls(**(facts | read))

    @property
    def active(self) -> bool:
        """A worker is to work on it."""
        return self.state in ACTIVE

    @property
    def frozen(self) -> bool:
        """Its traffic has been switched; it must not be started."""
        return self.state is StreamState.STOPPED and self.message == FROZEN

    @property
    def exact(self) -> bool:
        """The rows are exactly the source's at ``lsn``; before H some are newer or missing."""
        return self.lsn is not None and self.h_lsn is not None and self.lsn >= self.h_lsn

    @property
    def copied(self) -> bool:
        """The stream has passed its first H; a few rows may wait to be read again since."""
        return self.exact or self.accounts is not None
