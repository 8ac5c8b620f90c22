"""Applies compacted changes to one target, set by set, inside the caller's transaction.

The order within a table is what makes any permutation of unique values possible (datapath rules
10 and 18): emptying, deletes, rows that must leave because a unique value or the key changes (kept
as donors), updates in place, donors back in with their new values, pure inserts. Deletes of rows
and their return are separate statements, so nothing meets its own old image.

After H every statement must touch exactly the rows it names (rule 11); :func:`apply_strict` raises
:class:`MismatchError` when one does not, and the caller rolls back. Nothing here commits.

Where several source shards feed the table, a stream touches rows of its own source shard only
(rule 4). A row that another source shard's row keeps out is passed over by :func:`apply_lenient`
and must be read again; :func:`apply_strict` raises :class:`CollisionError`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from tidegate.engines.postgres.table_applier import TAKEN, CollisionError
from tidegate.engines.rowsets import key_fields
from tidegate.errors import DivergenceError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import psycopg

    from tidegate.engines.postgres.emptying import OwnRows
    from tidegate.engines.postgres.table_applier import KeyFields, TableApplier
    from tidegate.engines.rowsets import LenientSets, Present, StrictSets

#: Stage tables have no statistics and the key's index is always the way into the table.
_SETTINGS = ("enable_hashjoin = off", "enable_mergejoin = off", "enable_material = off")


def prepare(conn: psycopg.Connection) -> None:
    """Make a session ready to apply."""
    for setting in _SETTINGS:
        conn.execute("SET " + setting)


class MismatchError(Exception):
    """A statement touched another number of rows than it named; the transaction must go back."""

    def __init__(
        self, applier: TableApplier, what: str, keys: Sequence[KeyFields], touched: int
    ) -> None:
        super().__init__(what)
        self.applier, self.what, self.keys, self.touched = applier, what, keys, touched

    def divergence(self) -> DivergenceError:
        """The error to report; call it in a transaction of its own, to be rolled back."""
        missing = [", ".join(key) for key in self.applier.absent(self.keys)]
        name = self.applier.table.name
        return DivergenceError(
            f"table {name} differs from the source: a {self.what} of {len(self.keys)} rows found"
            f" {self.touched}; keys not there: {'; '.join(missing) or 'none'}",
            next_step="compare source and target (tidegate vdiff create), then copy again",
            table=str(name),
            missing=missing,
        )


def apply_strict(applier: TableApplier, sets: StrictSets, empty: OwnRows | None) -> int:
    """Apply one table's changes after H; returns the number of rows touched.

    Raises:
        MismatchError: a row that must be there is not.
        CollisionError: a row of another source shard may be in the way.
        DivergenceError: a row that must not be there is.
    """
    applier.begin()
    if sets.truncate:
        applier.empty(empty)
    if sets.deletes:
        keys = [key_fields(key) for key in sets.deletes]
        applier.stage_keys(keys)
        if (count := applier.delete_staged()) != len(keys):
            raise MismatchError(applier, "delete", keys, count)
    if sets.updates or sets.moves:
        _change_strictly(applier, sets)
    if sets.inserts:
        applier.insert(sets.inserts)
    changed = sum(map(len, sets.updates.values())) + sum(map(len, sets.moves.values()))
    return len(sets.deletes) + len(sets.inserts) + changed


def _change_strictly(applier: TableApplier, sets: StrictSets) -> None:
    moves = {p: [(key_fields(k), r) for k, r in m] for p, m in sets.moves.items()}
    try:
        touched = list(applier.change(sets.updates, moves).values())
    except TAKEN as error:
        if applier.shared:
            raise CollisionError(applier.name) from error
        raise
    for group, rows_of in zip(touched, sets.updates.values(), strict=False):
        if group.found != group.named:
            raise MismatchError(applier, "update", applier.keys_of(rows_of), group.found)
    for group, moved in zip(touched[len(sets.updates) :], moves.values(), strict=True):
        if group.found != group.named:
            raise MismatchError(applier, "update", [key for key, _ in moved], group.found)


@dataclass
class Applied:
    """What :func:`apply_lenient` did.

    Attributes:
        rows: how many were named.
        net: rows inserted less rows deleted, emptying aside.
        again: keys of rows that must be read again, none of which the stream has at the target.
    """

    rows: int = 0
    net: int = 0
    again: list[list[str]] = field(default_factory=list)


def apply_lenient(applier: TableApplier, sets: LenientSets, empty: OwnRows | None) -> Applied:
    """Apply one table's changes before H as upserts and deletes-if-there."""
    applier.begin()
    if sets.truncate:
        applier.empty(empty)
    done = Applied()
    moved = applier.stage_moves(sets.moves)
    done.net -= sum(out for _, _, out in moved.values())
    keys = _keys_to_go(applier, sets)
    if keys:
        applier.stage_keys(keys)
        done.net -= applier.delete_staged()
    _change_leniently(applier, sets, moved, done)
    if sets.upserts:
        if applier.shared:
            count, kept_out = applier.insert_where_free(sets.upserts)
            done.again += kept_out
        else:
            applier.insert(sets.upserts)
            count = len(sets.upserts)
        done.net += count
    if sets.refetch:
        done.again += applier.key_texts([key_fields(key) for key in sets.refetch])
    done.rows = len(keys) + sum(map(len, sets.updates.values()))
    return done


def _change_leniently(
    applier: TableApplier,
    sets: LenientSets,
    moved: Mapping[int, tuple[Present, int, int]],
    done: Applied,
) -> None:
    yielding = applier.shared
    for group, touched in applier.change(sets.updates, {}, yielding=yielding).items():
        done.net -= touched.lost
        if touched.found != touched.named:
            done.again += applier.staged_but_absent(group)
    for group, (present, named, _) in moved.items():
        back = applier.bring_back(group, present, yielding=yielding)
        done.net += back
        if back != named:
            done.again += applier.unwritten(group)


def _keys_to_go(applier: TableApplier, sets: LenientSets) -> list[KeyFields]:
    """All keys that must be free before rows are put in."""
    keys = [key_fields(key) for key in chain(sets.deletes, sets.refetch)]
    keys += applier.keys_of(sets.upserts)
    for moves in sets.moves.values():
        keys += applier.keys_of([row for _, row in moves])
    return keys
