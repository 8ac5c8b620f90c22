"""Turns a run of changes to one table into the few sets that have its effect; pure.

The input is any number of whole source transactions (or a part of one, applied inside one target
transaction). A key is its bytes as the log has them: two spellings of an equal key (numeric 1.0
and 1.00) are different keys here, and because all deletes run before all upserts the database's
own equality does the rest (datapath rule 18).

Two meanings of a change:

* :class:`Strict`, after H: each change names a row that must be there (or must not). Every row
  that is live at the end knows the key under which it was there at the beginning, its *origin*.
  From that follow exact sets: rows deleted, updated in place, moved from another key (with the
  deleted row as donor of values the log left out), inserted. Anything impossible, such as an
  update of a row this very batch deleted, is a divergence.
* :class:`Lenient`, before H or where the old shard of a row is unknown: upsert and
  delete-if-there. An update with values left out that changes the key, or that finds no row, is
  not applied: its key must be read again from the source (``refetch``, datapath rule 1). Once the
  stream has passed H, only rows read again are newer than the log; all others may be donors.

The tables of one batch are independent of each other: no trigger and no foreign-key check fires.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate.engines.changes import DELETE, INSERT, TRUNCATE, UPDATE, unpacked
from tidegate.engines.rowsets import (
    Key,
    LenientSets,
    Present,
    StrictSets,
    key_fields,
    key_getter,
    present_columns,
)
from tidegate.errors import DivergenceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tidegate.engines.changes import AnyRow, Change

#: Kind of a change that says: this key must be read again (its new tuple holds the key columns).
REFETCH = ord("F")
#: Kind of a change of a loose table that says: this row may have left; delete it if it is there.
GONE = ord("G")


def _merge(new: AnyRow, old: AnyRow) -> AnyRow:
    """``new``, with values it leaves out taken from ``old``."""
    if None not in new:
        return new
    return [b if a is None else a for a, b in zip(unpacked(new), unpacked(old), strict=True)]


class Strict:
    """Compacts changes to one table after H."""

    def __init__(self, key_columns: Sequence[int], name: str = "") -> None:
        self._key = key_getter(key_columns)
        self._name = name
        self._truncate = False
        #: key now → (key at the beginning or None when inserted, row with None for unknown values)
        self._live: dict[Key, tuple[Key | None, AnyRow]] = {}
        #: keys whose row of the beginning was deleted or moved
        self._gone: set[Key] = set()

    def add(self, kind: int, old: AnyRow | None, new: AnyRow | None) -> None:
        """One change.

        Raises:
            DivergenceError: it contradicts an earlier one.
        """
        if kind == INSERT:
            assert new is not None
            key = self._key(new)
            if key in self._live:
                raise self._contradiction("inserts a row that is there", key)
            self._live[key] = (None, new)
        elif kind == UPDATE:
            assert new is not None
            key = self._key(new)
            before = key if old is None else self._key(old)
            if before == key:
                self._update(key, new)
            else:
                self._move(before, key, new)
        elif kind == DELETE:
            assert old is not None
            self._delete(self._key(old))
        else:
            assert kind == TRUNCATE, f"no such change: {kind}"
            self._truncate = True
            self._live.clear()
            self._gone.clear()

    def add_all(self, changes: Iterable[Change]) -> None:
        """Many changes; the two commonest, whole rows in place and inserts, in a tight loop.

        Raises:
            DivergenceError: as :meth:`add`.
        """
        live, gone, key_of = self._live, self._gone, self._key
        for kind, _, old, new in changes:
            if old is not None or new is None or isinstance(new, list):
                self.add(kind, old, new)
                continue
            known_key = new[0].key
            key = key_of(new) if known_key is None else known_key(new[1])
            known = live.get(key)
            if kind == INSERT and known is None:
                live[key] = (None, new)
            elif kind == UPDATE and known is not None:
                live[key] = (known[0], new)
            elif kind == UPDATE and key not in gone and not self._truncate:
                live[key] = (key, new)
            else:
                self.add(kind, old, new)

    def _update(self, key: Key, new: AnyRow) -> None:
        known = self._live.get(key)
        if known is None:
            self._must_be_there(key, "updates")
            self._live[key] = (key, new)
        else:
            self._live[key] = (known[0], _merge(new, known[1]))

    def _move(self, before: Key, key: Key, new: AnyRow) -> None:
        known = self._live.pop(before, None)
        if key in self._live:
            raise self._contradiction("moves a row onto one that is there", key)
        if known is None:
            self._must_be_there(before, "moves")
            self._gone.add(before)
            self._live[key] = (before, new)
            return
        origin, row = known
        if origin == before:
            self._gone.add(before)
        self._live[key] = (origin, _merge(new, row))

    def _delete(self, key: Key) -> None:
        known = self._live.pop(key, None)
        if known is None:
            self._must_be_there(key, "deletes")
            self._gone.add(key)
        elif known[0] is not None:
            self._gone.add(known[0])

    def _must_be_there(self, key: Key, what: str) -> None:
        if key in self._gone or self._truncate:
            raise self._contradiction(f"{what} a row that is gone", key)

    def _contradiction(self, what: str, key: Key) -> DivergenceError:
        return DivergenceError(
            f"the log of table {self._name} {what}: key {key_fields(key)!r}",
            next_step="compare source and target (tidegate vdiff create), then copy again",
            table=self._name,
        )

    def sets(self) -> StrictSets:
        """The sets that have the effect of all changes added."""
        result = StrictSets(truncate=self._truncate)
        gone = self._gone
        whole: list[AnyRow] = []
        for key, (origin, row) in self._live.items():
            if origin is None:
                result.inserts.append(row)
            elif origin == key:
                if key in gone:
                    gone.discard(key)
                if isinstance(row, tuple):
                    whole.append(row)
                else:
                    result.updates[_present(row)].append(row)
            elif None in row:
                gone.discard(origin)
                result.moves[_present(row)].append((origin, row))
            else:
                result.inserts.append(row)
        if whole:
            result.updates[_present(whole[0])] += whole
        result.deletes = list(gone)
        return result


_FULL: dict[int, Present] = {}


def _present(row: AnyRow) -> Present:
    if isinstance(row, tuple):
        width = len(row[0].cuts)
    elif None in row:
        return present_columns(row)
    else:
        width = len(row)
    full = _FULL.get(width)
    if full is None:
        full = _FULL[width] = tuple(range(width))
    return full


class Lenient:
    """Compacts changes to one table before H, or of one whose old shards are unknown.

    ``donor`` says whether the target's row of a key is known to be the log's row at this position,
    so that it may give an update that moves it the values the log left out. Without it none is.
    """

    _ABSENT, _FULL, _PARTIAL, _MOVED, _REFETCH = range(5)

    def __init__(
        self, key_columns: Sequence[int], donor: Callable[[Key], bool] | None = None
    ) -> None:
        self._key = key_getter(key_columns)
        self._donor = donor
        self._truncate = False
        #: key → what it is in the end, the row as far as known, the key it was moved from
        self._last: dict[Key, tuple[int, AnyRow | None, Key]] = {}

    def add(self, kind: int, old: AnyRow | None, new: AnyRow | None) -> None:
        """One change; nothing here is impossible, because the target may be newer than the log."""
        if kind in {DELETE, GONE}:
            assert old is not None
            self._last[self._key(old)] = (self._ABSENT, None, None)
        elif kind == TRUNCATE:
            self._truncate = True
            self._last.clear()
        else:
            assert new is not None
            self._write(kind, old, new)

    def add_all(self, changes: Iterable[Change]) -> None:
        """Many changes."""
        for kind, _, old, new in changes:
            self.add(kind, old, new)

    def _write(self, kind: int, old: AnyRow | None, new: AnyRow) -> None:
        key = self._key(new)
        before = key if old is None else self._key(old)
        found: tuple[int, AnyRow | None, Key]
        if kind == REFETCH:
            found = (self._REFETCH, None, None)
        elif kind == INSERT or None not in new:
            found = (self._FULL, new, None)
        else:
            found = self._partial(before, key, new)
        if before != key:
            self._last[before] = (self._ABSENT, None, None)
        self._last[key] = found

    def _partial(self, before: Key, key: Key, new: AnyRow) -> tuple[int, AnyRow | None, Key]:
        """What an update that leaves values out makes of what is known of its row."""
        kind, row, origin = self._last.get(before, (self._PARTIAL, None, before))
        if kind in {self._ABSENT, self._REFETCH}:
            return (self._REFETCH, None, None)
        merged = new if row is None else _merge(new, row)
        if None not in merged:
            return (self._FULL, merged, None)
        if kind == self._PARTIAL and before == key:
            return (self._PARTIAL, merged, key)
        known = self._donor is not None and not self._truncate
        if kind == self._MOVED or (known and self._donor is not None and self._donor(origin)):
            return (self._MOVED, merged, origin)
        return (self._REFETCH, None, None)

    def sets(self) -> LenientSets:
        """The sets that have the effect of all changes added."""
        result = LenientSets(truncate=self._truncate)
        for key, (kind, row, origin) in self._last.items():
            if kind == self._ABSENT:
                result.deletes.append(key)
            elif row is None or (kind == self._PARTIAL and self._truncate):
                result.refetch.append(key)
            elif kind == self._FULL:
                result.upserts.append(row)
            elif kind == self._PARTIAL:
                result.updates[_present(row)].append(row)
            else:
                result.moves[_present(row)].append((origin, row))
        return result
