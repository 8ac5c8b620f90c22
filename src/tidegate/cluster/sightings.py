"""How long a row has not changed, measured by whoever looks, on a clock that nobody can set.

The clocks of machines are wrong at times, by hours, and the cluster database's clock is that of the
machine that leads. So how long a holder has been silent is not computed from times that somebody
wrote: every process remembers when it saw a row change, on its own monotonic clock. That clock says
less than the truth, never more: a row is seen after it was written.

What is remembered belongs to a database that is open, and is shared by all who look at it in this
process. A renewal that this process makes is noted as well, so that none of its threads takes
another one's lease for silent.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from tidegate.cluster.database import ClusterDatabase

NAMES_MAX: Final = 4096
"""Names that are remembered; the one that was seen longest ago goes first."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """What is known of a row as it is now.

    Attributes:
        silent_s: for at least so long it has not changed.
        was_renewed: it was seen to change, so its holder was alive then.
    """

    silent_s: float
    was_renewed: bool


UNSEEN: Final = Sighting(0.0, was_renewed=False)


@dataclass(slots=True)
class _Seen:
    state: Hashable
    since: float
    was_renewed: bool


class Sightings:
    """The rows that a process has seen; for any number of threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[str, _Seen] = {}

    def see(self, name: str, state: Hashable) -> Sighting:
        """Note a row that was just read; what is known of it."""
        with self._lock:
            now = self._clock()
            known = self._seen.pop(name, None)
            if known is None:
                known = _Seen(state, now, was_renewed=False)
            elif known.state != state:
                known = _Seen(state, now, was_renewed=True)
            self._keep(name, known)
            return Sighting(now - known.since, known.was_renewed)

    def renewed(self, name: str, state: Hashable) -> None:
        """Note a row that this process has just written."""
        with self._lock:
            self._seen.pop(name, None)
            self._keep(name, _Seen(state, self._clock(), was_renewed=True))

    def _keep(self, name: str, seen: _Seen) -> None:
        while len(self._seen) >= NAMES_MAX:
            del self._seen[next(iter(self._seen))]
        self._seen[name] = seen


_of_databases: WeakKeyDictionary[ClusterDatabase, Sightings] = WeakKeyDictionary()
_lock: Final = threading.Lock()


def sightings_of(database: ClusterDatabase) -> Sightings:
    """What this process has seen in a database."""
    with _lock:
        return _of_databases.setdefault(database, Sightings())
