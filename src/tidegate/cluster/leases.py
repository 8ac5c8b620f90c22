"""Leases: who may act on a name, until when, and how a late holder is kept out.

The model. A lease has a *name* (``workflow/commerce/move``), a *holder* (a text that says who, and
no two processes say the same), a *revision* and an *expiry*.

* A name has at most one holder. A holder that does not renew for the time to live may be succeeded,
  and is not before that.
* Each acquisition gives the name a revision that it never had before, larger than all earlier ones.
  The row stays when the lease is released, so that this holds for ever.
* Renewing moves the expiry and keeps the revision. A lease is lost when somebody else acquires the
  name, or the holder releases it; it is never renewed back, since somebody may have acted and gone.
  An expiry that nobody used is forgiven: while the revision is the same, nobody has been there.
* Time is measured on monotonic clocks. A holder measures, from *before* it asked, how long a
  renewal may be believed. Whoever wants the name measures how long the row has not changed
  (:mod:`tidegate.cluster.sightings`), since it saw it first.
* Clocks of machines may be wrong, and the database's is that of a machine. So the expiry in a row
  decides only what cannot be measured: a process that has just been started takes a name at once
  that expired long ago. It believes no expiry beyond the time to live, and takes no name away from
  a holder that it has seen renewing.
* A holder may be paused for any time between asking and acting. Therefore whatever takes effect
  checks the revision where it takes effect: in the cluster database with :meth:`Leases.check`,
  inside the transaction that writes; elsewhere by storing the revision and refusing a smaller one.
* A holder that asks again for what it holds is refused like anybody else: the first request may
  still be at work. A process that knows its predecessor dead gives its leases up by name
  (:meth:`Leases.release_holder`).

Decisions are the pure functions :func:`acquired`, :func:`renewed`, :func:`released` and
:func:`is_held_as`; :class:`Leases` reads, decides, and writes by compare-and-swap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, Column, MetaData, Table, Text, select
from sqlalchemy.exc import IntegrityError

from tidegate.cluster.sightings import UNSEEN, sightings_of
from tidegate.errors import ConflictError, InvalidArgumentError, LeaseLostError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row

    from tidegate.cluster.database import ClusterDatabase
    from tidegate.cluster.sightings import Sighting

MIN_TTL_S: Final = 0.05
MAX_TTL_S: Final = 3600.0

_LEASES: Final = Table(
    "lease",
    MetaData(),
    Column("name", Text),
    Column("holder", Text),
    Column("revision", BigInteger),
    Column("acquired_at_ms", BigInteger),
    Column("expires_at_ms", BigInteger),
)


@dataclass(frozen=True, slots=True)
class Lease:
    """A name as its holder got it. ``revision`` fences; times are the database's, in UTC."""

    name: str
    holder: str
    revision: int
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """A name as the database has it; ``holder`` is None once it was released."""

    name: str
    holder: str | None
    revision: int
    acquired_at: datetime
    expires_at: datetime

    def is_held(self, now: datetime) -> bool:
        """Whether somebody holds the name at this time of the database's clock."""
        return self.holder is not None and now < self.expires_at

    def is_free(self, now: datetime, sighting: Sighting, ttl: timedelta) -> bool:
        """Whether the name may be acquired.

        Args:
            now: the database's time.
            sighting: what is known of this very row.
            ttl: the time to live of leases of this name.
        """
        if self.holder is None or sighting.silent_s >= ttl.total_seconds():
            return True
        return now >= self.expires_at and not sighting.was_renewed


def acquired(
    row: LeaseRow | None,
    name: str,
    holder: str,
    ttl: timedelta,
    now: datetime,
    *,
    sighting: Sighting = UNSEEN,
) -> LeaseRow:
    """The row after ``holder`` got the name.

    Args:
        row: as it is; None: nobody had the name yet.
        name: of the lease.
        holder: who wants it.
        ttl: how long; the same for everybody who wants this name.
        now: the database's time.
        sighting: what is known of this very row.

    Raises:
        ConflictError: somebody holds it.
    """
    if row is not None and not row.is_free(now, sighting, ttl):
        left_s = min(row.expires_at - now, ttl).total_seconds()
        left_s = max(0.0, min(left_s, ttl.total_seconds() - sighting.silent_s))
        raise ConflictError(
            f"{name} is held by {row.holder} for another {left_s:.1f} s unless renewed",
            next_step="wait for it to be released, or stop its holder and let it expire",
            name=name,
            holder=row.holder,
            revision=row.revision,
            expires_at=row.expires_at.isoformat(),
        )
    return LeaseRow(name, holder, row.revision + 1 if row else 1, now, now + ttl)


def is_held_as(row: LeaseRow | None, lease: Lease) -> bool:
    """Whether the lease is the one that counts: nobody has had the name since."""
    return row is not None and (row.revision, row.holder) == (lease.revision, lease.holder)


def renewed(row: LeaseRow | None, lease: Lease, ttl: timedelta, now: datetime) -> LeaseRow:
    """The row after a renewal. Its expiry moves back where the database's clock did.

    Raises:
        LeaseLostError: it was released, or somebody else has or had the name.
    """
    if row is None or not is_held_as(row, lease):
        raise lost(row, lease)
    return replace(row, expires_at=now + ttl)


def released(row: LeaseRow | None, lease: Lease) -> LeaseRow | None:
    """The row after the holder gave the name up, or None when there is nothing to give up."""
    if row is None or (row.revision, row.holder) != (lease.revision, lease.holder):
        return None
    return replace(row, holder=None)


def lost(row: LeaseRow | None, lease: Lease) -> LeaseLostError:
    """The error that says how a lease was lost."""
    if row is None:
        how = "is not in the cluster database"
    elif row.revision != lease.revision:
        who = row.holder or "somebody who released it again"
        how = f"went on to {who} (revision {row.revision})"
    else:
        how = "was released"
    return LeaseLostError(
        f"the lease {lease.name} of {lease.holder} (revision {lease.revision}) {how}",
        next_step="observe the state again and repeat the command",
        name=lease.name,
        holder=lease.holder,
        revision=lease.revision,
    )


@dataclass(frozen=True, slots=True)
class Look:
    """A name as it was seen; ``holder`` is None when it was released, or never acquired."""

    holder: str | None
    is_free: bool


class Leases:
    """All leases of a cluster database."""

    def __init__(self, database: ClusterDatabase) -> None:
        self._database = database
        self._sightings = sightings_of(database)

    def look(self, name: str, ttl_s: float) -> Look:
        """Who holds a name, and whether it may be acquired; writes nothing."""
        with self._database.read() as connection:
            query = select(_LEASES).where(_LEASES.c.name == name)
            found = connection.execute(query).one_or_none()
            if found is None:
                return Look(None, is_free=True)
            row = _row(found)
            now = self._database.now(connection)
        sighting = self._sightings.see(name, _state(row))
        return Look(row.holder, row.is_free(now, sighting, _ttl(ttl_s)))

    def acquire(self, name: str, holder: str, ttl_s: float) -> Lease:
        """Get a name for ``ttl_s`` seconds; does not wait.

        Raises:
            ConflictError: somebody holds it; the message and ``details`` say who, until when.
            InvalidArgumentError: no name, no holder, or a time out of bounds.
        """
        ttl = _ttl(ttl_s)
        if not name or not holder:
            raise InvalidArgumentError("a lease needs a name and a holder")
        with self._database.transaction() as connection:
            row = _read(connection, name)
            sighting = UNSEEN if row is None else self._sightings.see(name, _state(row))
            after = acquired(
                row, name, holder, ttl, self._database.now(connection), sighting=sighting
            )
            _write(connection, row, after)
        self._sightings.renewed(name, _state(after))
        return _lease(after)

    def renew(self, lease: Lease, ttl_s: float) -> Lease:
        """Hold on to a lease for ``ttl_s`` seconds from now.

        Raises:
            LeaseLostError: it is not ours any more.
        """
        ttl = _ttl(ttl_s)
        with self._database.transaction() as connection:
            row = _read(connection, lease.name)
            after = renewed(row, lease, ttl, self._database.now(connection))
            _write(connection, row, after)
        self._sightings.renewed(lease.name, _state(after))
        return _lease(after)

    def release(self, lease: Lease) -> bool:
        """Give a lease up; False when it was not ours any more, which is no error."""
        with self._database.transaction() as connection:
            row = _read(connection, lease.name)
            after = released(row, lease)
            if after is not None:
                _write(connection, row, after)
        return after is not None

    def release_holder(self, holder: str) -> list[str]:
        """Give up every lease of a holder that is known to be dead; returns their names."""
        mine = _LEASES.c.holder == holder
        with self._database.transaction() as connection:
            names = select(_LEASES.c.name).where(mine).order_by(_LEASES.c.name)
            found = list(connection.execute(names).scalars())
            connection.execute(_LEASES.update().where(mine).values(holder=None))
        return found

    def revoke_others(self, prefix: str, holder: str) -> dict[str, str]:
        """Give up every lease of others whose name begins so; for whoever has succeeded them.

        Their holders may be alive and act once more: what they write under these leases does not
        commit any more.

        Returns:
            Who held what: holders by name.
        """
        theirs = (
            _LEASES.c.name.startswith(prefix, autoescape=True)
            & _LEASES.c.holder.is_not(None)
            & (_LEASES.c.holder != holder)
        )
        with self._database.transaction() as connection:
            query = select(_LEASES.c.name, _LEASES.c.holder).where(theirs)
            found = {row.name: str(row.holder) for row in connection.execute(query)}
            if found:
                connection.execute(_LEASES.update().where(theirs).values(holder=None))
        return found

    def check(self, connection: Connection, lease: Lease) -> None:
        """Make sure, inside a transaction, that it commits only under this lease.

        Raises:
            LeaseLostError: the lease is not ours any more; the transaction must not commit.
        """
        row = _read(connection, lease.name)
        if not is_held_as(row, lease):
            raise lost(row, lease)

    def holders(self) -> list[LeaseRow]:
        """All names that are held now, by name."""
        with self._database.read() as connection:
            now = self._database.now(connection)
            rows = connection.execute(select(_LEASES).order_by(_LEASES.c.name))
            found = [_row(row) for row in rows]
        return [row for row in found if row.is_held(now)]


def _ttl(ttl_s: float) -> timedelta:
    if not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
        raise InvalidArgumentError(
            f"a lease of {ttl_s:g} s is out of bounds",
            next_step=f"choose between {MIN_TTL_S:g} and {MAX_TTL_S:g} s",
        )
    return timedelta(seconds=ttl_s)


def _lease(row: LeaseRow) -> Lease:
    assert row.holder is not None
    return Lease(row.name, row.holder, row.revision, row.expires_at)


def _state(row: LeaseRow) -> tuple[int, str | None, int]:
    """What changes with every renewal."""
    return row.revision, row.holder, _milliseconds(row.expires_at)


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _milliseconds(time: datetime) -> int:
    return round(time.timestamp() * 1000)


def _read(connection: Connection, name: str) -> LeaseRow | None:
    """The row, locked until the transaction ends on engines that lock rows."""
    query = select(_LEASES).where(_LEASES.c.name == name).with_for_update()
    row = connection.execute(query).one_or_none()
    return None if row is None else _row(row)


def _row(row: Row[Any]) -> LeaseRow:
    return LeaseRow(
        name=row.name,
        holder=row.holder,
        revision=row.revision,
        acquired_at=_time(row.acquired_at_ms),
        expires_at=_time(row.expires_at_ms),
    )


def _write(connection: Connection, before: LeaseRow | None, after: LeaseRow) -> None:
    """Replace the row that was read.

    Raises:
        ConflictError: somebody changed it meanwhile.
    """
    values = {
        "holder": after.holder,
        "revision": after.revision,
        "acquired_at_ms": _milliseconds(after.acquired_at),
        "expires_at_ms": _milliseconds(after.expires_at),
    }
    if before is None:
        try:
            connection.execute(_LEASES.insert().values(name=after.name, **values))
        except IntegrityError:
            raise _overtaken(after.name) from None
        return
    unchanged = (
        (_LEASES.c.name == before.name)
        & (_LEASES.c.revision == before.revision)
        & (_LEASES.c.expires_at_ms == _milliseconds(before.expires_at))
        & (_LEASES.c.holder.is_not_distinct_from(before.holder))
    )
    if connection.execute(_LEASES.update().where(unchanged).values(**values)).rowcount != 1:
        raise _overtaken(after.name)


def _overtaken(name: str) -> ConflictError:
    return ConflictError(f"somebody else changed the lease {name} meanwhile", next_step="try again")
