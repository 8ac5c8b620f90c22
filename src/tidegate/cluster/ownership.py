"""Which member owns the cluster's work: one at a time, followed by another within seconds.

The owner runs the workers of all spans, takes up what a dead node left, and carries out the verbs
that other members pass on to it. It holds the lease ``owner``; a successor gets a higher revision.

Decides what a member may believe of itself (:func:`stood`, pure), and asks for the lease again and
again. Three standings:

* *owner*: the lease is ours and can be believed;
* *unsure*: it was ours, and the cluster database has not answered for longer than it lasts. Nothing
  new is begun, and workers go on: the epoch in each stream's row keeps them harmless if another
  member has taken over, and nothing is gained by stopping rows because a database is away;
* *other*: somebody else is owner, or nobody we know. Nothing is begun here.

A take-over costs more than waiting a little, and on a machine that is short of time everybody seems
silent. So an owner is succeeded when it has not renewed for the time to live, *and* whoever follows
has been in time itself for its last few looks at the database (:func:`watched`, pure): the owner
had the same chance meanwhile. An owner that comes late, before anybody has followed it, goes on.
The thread here does nothing else, has connections of its own, and priority where that is allowed.

It must not decide what owning means: whoever is interested looks at :attr:`Ownership.standing`.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import structlog

from tidegate.cluster.priority import prefer_this_thread
from tidegate.errors import (
    ClusterDatabaseError,
    ConflictError,
    LeaseLostError,
    OutcomeUnknownError,
    TidegateError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidegate.cluster.leases import Lease, Leases, Look

LEASE: Final = "owner"
TTL_S: Final = 4.0
"""An owner that has not renewed for so long may be succeeded."""
POLL_S: Final = 0.4
LATE_S: Final = 1.0
"""A look at the database that takes longer, or begins so much later than planned, was late."""
CALM_LOOKS: Final = 3
"""So many looks in a row must have been in time before an owner is succeeded."""
STOPS_S: Final = 15.0

log = structlog.get_logger("tidegate.owner")


class Standing(StrEnum):
    """What a member is to the cluster's work."""

    OWNER = "owner"
    UNSURE = "unsure"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Believed:
    """What a member believes.

    Attributes:
        standing: see the module.
        holder: of the lease, as far as is known.
        revision: of our lease while we are owner or unsure, else 0.
        until: on the monotonic clock: how long being owner may be believed.
    """

    standing: Standing = Standing.OTHER
    holder: str | None = None
    revision: int = 0
    until: float = 0.0


@dataclass(frozen=True, slots=True)
class Held:
    """The database said that the lease is ours; asked for at ``asked_at``."""

    holder: str
    revision: int
    asked_at: float
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Taken:
    """The database said that somebody else has the lease."""

    holder: str | None


@dataclass(frozen=True, slots=True)
class Silence:
    """The database did not answer."""

    now: float


def stood(before: Believed, event: Held | Taken | Silence) -> Believed:
    """What is to be believed after an answer, or the lack of one."""
    match event:
        case Held(holder, revision, asked_at, ttl_s):
            assert revision >= before.revision, "a revision went back"
            return Believed(Standing.OWNER, holder, revision, asked_at + ttl_s)
        case Taken(holder):
            return Believed(Standing.OTHER, holder)
        case Silence(now):
            if before.standing is Standing.OWNER and now >= before.until:
                return Believed(Standing.UNSURE, before.holder, before.revision, before.until)
            return before


@dataclass(frozen=True, slots=True)
class Watch:
    """How well a member has kept watch: when its last look ended, how many were in time."""

    ended_at: float
    in_time: int = 0


def watched(before: Watch, began_at: float, ended_at: float, poll_s: float) -> Watch:
    """The watch after one more look at the database."""
    is_late = began_at - before.ended_at > poll_s + LATE_S or ended_at - began_at > LATE_S
    return Watch(ended_at, 0 if is_late else before.in_time + 1)


class Ownership:
    """Competes for the owner lease; :meth:`start` once, :meth:`stop` any number of times."""

    def __init__(
        self,
        leases: Leases,
        holder: str,
        *,
        on_change: Callable[[Believed], None],
        ttl_s: float = TTL_S,
        poll_s: float = POLL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing happens yet.

        Args:
            leases: of the cluster database.
            holder: this process's name in leases.
            on_change: called, in the thread of this object, when the standing has changed; quick.
            ttl_s: of the lease.
            poll_s: between two attempts to get it; a third of ``ttl_s`` between two renewals.
            clock: seconds that do not jump.
        """
        self._leases = leases
        self._holder = holder
        self._on_change = on_change
        self._ttl_s = ttl_s
        self._poll_s = poll_s
        self._clock = clock
        self._believed = Believed()
        self._watch = Watch(clock())
        self._lease: Lease | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ownership", daemon=True)

    @property
    def believed(self) -> Believed:
        """What is believed now; an owner who has not been confirmed in time is unsure at once."""
        return stood(self._believed, Silence(self._clock()))

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Give the lease up, so that a successor need not wait for it to expire."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOPS_S)
        lease, self._lease = self._lease, None
        if lease is not None:
            try:
                self._leases.release(lease)
            except TidegateError as error:
                log.warning("owner lease not released", error=str(error))

    def _run(self) -> None:
        prefer_this_thread()
        while not self._stopping.is_set():
            before = self._believed
            event: Held | Taken | Silence
            try:
                event = self._ask()
            except (ClusterDatabaseError, OutcomeUnknownError) as error:
                log.debug("owner lease not asked for", error=str(error))
                event = Silence(self._clock())
            except Exception:
                # This loop never ends by itself: without it nobody would own the work.
                log.exception("ownership failed")
                event = Silence(self._clock())
            self._believed = stood(before, event)
            if (before.standing, before.holder) != (self._believed.standing, self._believed.holder):
                log.info(
                    "ownership", standing=self._believed.standing, holder=self._believed.holder
                )
                self._on_change(self._believed)
            owns = self._believed.standing is Standing.OWNER
            self._stopping.wait(self._ttl_s / 4 if owns else self._poll_s)

    def _look(self) -> Look:
        began_at = self._clock()
        look = self._leases.look(LEASE, self._ttl_s)
        self._watch = watched(self._watch, began_at, self._clock(), self._poll_s)
        return look

    def _ask(self) -> Held | Taken:
        asked_at = self._clock()
        if self._lease is not None:
            try:
                self._lease = self._leases.renew(self._lease, self._ttl_s)
                return Held(self._holder, self._lease.revision, asked_at, self._ttl_s)
            except LeaseLostError:
                self._lease = None
        look = self._look()
        if not look.is_free or (look.holder is not None and self._watch.in_time < CALM_LOOKS):
            return Taken(look.holder)
        asked_at = self._clock()
        try:
            self._lease = self._leases.acquire(LEASE, self._holder, self._ttl_s)
        except ConflictError as error:
            holder = error.details.get("holder")
            return Taken(str(holder) if holder else None)
        return Held(self._holder, self._lease.revision, asked_at, self._ttl_s)
