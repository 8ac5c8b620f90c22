"""Applies compacted changes to one target, set by set, inside the caller's transaction.

The order within a table is what makes any permutation of unique values possible (datapath rules
10 and 18): emptying, deletes, rows that must leave because a unique value or the key changes (kept
as donors), updates in place, donors back in with their new values, pure inserts. Deletes of rows
and their return are separate statements, so nothing meets its own old image.

After H every statement must touch exactly the rows it names (rule 11); :func:`apply_strict` raises
:class:`MismatchError` when one does not, and the caller rolls back. Nothing here commits.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from tidegate.engines.postgres import rows
from tidegate.engines.postgres.emptying import delete_own
from tidegate.engines.postgres.pgoutput import unpacked
from tidegate.engines.postgres.rowsets import key_fields, key_getter
from tidegate.errors import DivergenceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tidegate.engines.postgres.apply_tables import TargetTable
    from tidegate.engines.postgres.emptying import OwnRows
    from tidegate.engines.postgres.pgoutput import AnyRow
    from tidegate.engines.postgres.rowsets import LenientSets, Present, StrictSets

type KeyFields = tuple[bytes, ...]

#: Keys named in a message.
KEYS_NAMED_MAX = 10

#: Stage tables have no statistics and the key's index is always the way into the table.
SESSION_SETTINGS = ("enable_hashjoin = off", "enable_mergejoin = off", "enable_material = off")


class TableApplier:
    """The statements of one target table in one session."""

    def __init__(self, conn: psycopg.Connection, table: TargetTable, *, binary: bool) -> None:
        self._conn = conn
        self.table = table
        self._table = table
        self._binary = binary
        self._format = sql.SQL("(FORMAT {})").format(sql.SQL("binary" if binary else "text"))
        self._all = tuple(range(len(table.columns)))
        self._key = key_getter(table.key)
        self._groups = 0
        self._staged: dict[str, sql.Identifier] = {}  # stages this transaction has filled

    def prepare(self) -> None:
        """Make the stage tables; outside of a transaction."""
        for statement in self._table.stage_statements():
            self._conn.execute(statement)

    def begin(self) -> None:
        """A new part of a transaction: stages filled by an earlier part are emptied."""
        if self._staged:
            stages = sql.SQL(", ").join(self._staged.values())
            self._conn.execute(sql.SQL("TRUNCATE {}").format(stages))
        self._groups = 0
        self._staged.clear()

    def committed(self) -> None:
        """The transaction is over, and with it what the stages held."""
        self._staged.clear()

    def _copy(self, target: sql.Composable, columns: sql.Composable, data: bytes) -> int:
        statement = sql.SQL("COPY {} ({}) FROM STDIN {}").format(target, columns, self._format)
        with self._conn.cursor() as cursor:
            with cursor.copy(statement) as copy:
                copy.write(data)
            return cursor.rowcount

    def _encode(self, values: Iterable[Sequence[Any]], width: int) -> bytes:
        return rows.encode(values, width, binary=self._binary)

    # emptying and deleting

    def empty(self, own: OwnRows | None) -> None:
        """Remove all rows, or those of one source shard."""
        if own is not None:
            delete_own(self._conn, self._table.relation, own)
            return
        referenced = self._conn.execute(
            "SELECT EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND confrelid = "
            "(SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            "  WHERE n.nspname = %s AND c.relname = %s))",
            [self._table.name.schema, self._table.name.name],
        ).fetchone()
        how = "DELETE FROM ONLY {}" if referenced and referenced[0] else "TRUNCATE ONLY {}"
        self._conn.execute(sql.SQL(how).format(self._table.relation))

    def stage_keys(self, keys: Sequence[KeyFields]) -> None:
        """Put keys on the stage that :meth:`delete_staged` works on."""
        self._staged["key"] = self._table.key_stage
        names = [sql.Identifier(f"k{n}") for n in range(len(self._table.key))]
        data = self._encode(keys, len(self._table.key))
        self._copy(self._table.key_stage, sql.SQL(", ").join(names), data)

    def delete_staged(self) -> int:
        """Delete the rows whose keys are staged; says how many there were."""
        return self._conn.execute(
            sql.SQL("DELETE FROM ONLY {} AS t USING {} AS s WHERE {}").format(
                self._table.relation, self._table.key_stage, self._table.matches("k")
            )
        ).rowcount

    # changing rows

    def stage_rows(
        self,
        present: Present,
        changed: Sequence[AnyRow],
        origins: Sequence[KeyFields] | None = None,
    ) -> int:
        """Put rows on the row stage as a group of their own; returns the group's number."""
        self._staged["row"] = self._table.row_stage
        self._groups += 1
        names = [f"c{i}" for i in present]
        whole = len(present) == len(self._all)
        if whole and origins is None and self._groups == 1:  # the stage's default for ``g``
            data = rows.encode_full(changed, len(names), binary=self._binary)
        else:
            mark = rows.integer_field(self._groups, binary=self._binary)
            names.append("g")
            cut = map(unpacked, changed)
            values: Iterable[Sequence[Any]] = ((*(row[i] for i in present), mark) for row in cut)
            if origins is not None:
                names += [f"o{n}" for n in range(len(self._table.key))]
                values = ((*row, *key) for row, key in zip(values, origins, strict=True))
            data = self._encode(values, len(names))
        columns = sql.SQL(", ").join(map(sql.Identifier, names))
        self._copy(self._table.row_stage, columns, data)
        return self._groups

    def take_out(self, group: int, present: Present, *, moves: bool) -> int:
        """Delete the group's rows that must leave, and keep them as donors; says how many.

        Moves leave from their origin key; rows updated in place only where a swap column changes.
        """
        table = self._table
        condition = None if moves else table.swapped(present)
        if not moves and condition is None:
            return 0
        absent = [i for i in self._all if i not in set(present)]
        kept = [sql.SQL("s.ctid"), *(sql.SQL("t.{}").format(table.names([i])) for i in absent)]
        names = ["at", *(f"c{i}" for i in absent)]
        query = sql.SQL(
            "WITH gone AS (DELETE FROM ONLY {table} AS t USING {stage} AS s"
            " WHERE s.g = {group} AND {match} AND {condition} RETURNING {kept})"
            " INSERT INTO {donors} ({names}) SELECT * FROM gone"
        ).format(
            table=table.relation,
            stage=table.row_stage,
            group=sql.Literal(group),
            match=table.matches("o" if moves else "c"),
            condition=condition or sql.SQL("true"),
            kept=sql.SQL(", ").join(kept),
            donors=table.donor_stage,
            names=sql.SQL(", ").join(map(sql.Identifier, names)),
        )
        self._staged["donor"] = table.donor_stage
        return self._conn.execute(query).rowcount

    def update(self, group: int, present: Present) -> int:
        """Update the group's rows that are still there, in place; says how many."""
        table = self._table
        settable = table.settable(present)
        where = sql.SQL("s.g = {} AND {}").format(sql.Literal(group), table.matches("c"))
        if not settable:
            count = sql.SQL("SELECT count(*) FROM ONLY {} AS t, {} AS s WHERE {}").format(
                table.relation, table.row_stage, where
            )
            row = self._conn.execute(count).fetchone()
            return 0 if row is None else int(row[0])
        assignments = [
            sql.SQL("{} = s.{}").format(table.names([i]), sql.Identifier(f"c{i}")) for i in settable
        ]
        query = sql.SQL("UPDATE ONLY {} AS t SET {} FROM {} AS s WHERE {}").format(
            table.relation, sql.SQL(", ").join(assignments), table.row_stage, where
        )
        return self._conn.execute(query).rowcount

    def bring_back(self, group: int, present: Present) -> int:
        """Insert the group's rows that were taken out, with donors' values where they lack any."""
        table = self._table
        carried = set(present)
        values = [
            sql.SQL("{}.{}").format(sql.SQL("s" if i in carried else "d"), sql.Identifier(f"c{i}"))
            for i in self._all
        ]
        query = sql.SQL(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE"
            " SELECT {} FROM {} AS d, {} AS s WHERE s.ctid = d.at AND s.g = {}"
        ).format(
            table.relation,
            table.names(self._all),
            sql.SQL(", ").join(values),
            table.donor_stage,
            table.row_stage,
            sql.Literal(group),
        )
        return self._conn.execute(query).rowcount

    def change(
        self,
        updates: Mapping[Present, Sequence[AnyRow]],
        moves: Mapping[Present, Sequence[tuple[KeyFields, AnyRow]]],
    ) -> dict[int, tuple[int, int]]:
        """Apply updates and moves of a table together.

        Returns:
            For each group, in the order of ``updates`` then ``moves``: rows named, rows touched.
        """
        named: dict[int, tuple[Present, bool, int]] = {}
        for present, changed in updates.items():
            named[self.stage_rows(present, changed)] = (present, False, len(changed))
        for present, moved in moves.items():
            group = self.stage_rows(present, [r for _, r in moved], [k for k, _ in moved])
            named[group] = (present, True, len(moved))
        touched = {
            group: self.take_out(group, present, moves=is_move)
            for group, (present, is_move, _) in named.items()
        }
        out = dict(touched)
        for group, (present, is_move, _) in named.items():
            if not is_move:
                touched[group] += self.update(group, present)
        for group, (present, _, _) in named.items():
            if out[group]:
                self.bring_back(group, present)
        return {group: (named[group][2], touched[group]) for group in named}

    def stage_moves(
        self, moves: Mapping[Present, Sequence[tuple[KeyFields, AnyRow]]]
    ) -> dict[int, tuple[Present, int]]:
        """Take out the rows that move, as far as they are there; group → columns, rows named."""
        groups = {}
        for present, moved in moves.items():
            origins = [key_fields(key) for key, _ in moved]
            group = self.stage_rows(present, [row for _, row in moved], origins)
            self.take_out(group, present, moves=True)
            groups[group] = (present, len(moved))
        return groups

    def without_donor(self, group: int) -> list[list[str]]:
        """New keys of a group of moves whose row was not there."""
        query = sql.SQL(
            "SELECT {} FROM {} AS s WHERE s.g = {} AND s.ctid NOT IN (SELECT d.at FROM {} AS d)"
        ).format(
            self._table.key_text("c"),
            self._table.row_stage,
            sql.Literal(group),
            self._table.donor_stage,
        )
        return [row[0] for row in self._conn.execute(query)]

    def staged_but_absent(self, group: int) -> list[list[str]]:
        """Keys of a group of updates that no row of the table has."""
        table = self._table
        query = sql.SQL(
            "SELECT {} FROM {} AS s WHERE s.g = {} AND NOT EXISTS (SELECT FROM ONLY {} AS t"
            " WHERE {})"
        ).format(
            table.key_text("c"),
            table.row_stage,
            sql.Literal(group),
            table.relation,
            table.matches("c"),
        )
        return [row[0] for row in self._conn.execute(query)]

    def insert(self, new: Sequence[AnyRow]) -> None:
        """Insert full rows by COPY.

        Raises:
            DivergenceError: one is there already, or another unique value is taken.
        """
        data = rows.encode_full(new, len(self._all), binary=self._binary)
        try:
            self._copy(self._table.relation, self._table.names(self._all), data)
        except (psycopg.errors.UniqueViolation, psycopg.errors.ExclusionViolation) as error:
            raise DivergenceError(
                f"a row of table {self._table.name} is at the target already:"
                f" {error.diag.message_detail or error}",
                next_step="compare source and target (tidegate vdiff create), then copy again",
                table=str(self._table.name),
                constraint=error.diag.constraint_name,
            ) from error

    # telling

    def keys_of(self, changed: Iterable[AnyRow]) -> list[KeyFields]:
        """Keys of rows."""
        return [key_fields(self._key(row)) for row in changed]

    def key_texts(self, keys: Sequence[KeyFields]) -> list[list[str]]:
        """Keys as the database writes them; for messages and for what is kept about keys."""
        self.begin()
        self.stage_keys(keys)
        query = sql.SQL("SELECT {} FROM {} AS s").format(
            self._table.key_text("k"), self._table.key_stage
        )
        return [row[0] for row in self._conn.execute(query)]

    def absent(self, keys: Sequence[KeyFields]) -> list[list[str]]:
        """Which of these keys no row has; in a transaction of its own, for a message."""
        self.begin()
        self.stage_keys(keys)
        query = sql.SQL(
            "SELECT {} FROM {} AS s WHERE NOT EXISTS (SELECT FROM ONLY {} AS t WHERE {}) LIMIT {}"
        ).format(
            self._table.key_text("k"),
            self._table.key_stage,
            self._table.relation,
            self._table.matches("k"),
            sql.Literal(KEYS_NAMED_MAX),
        )
        return [row[0] for row in self._conn.execute(query)]


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
        moves = {p: [(key_fields(k), r) for k, r in m] for p, m in sets.moves.items()}
        touched = applier.change(sets.updates, moves)
        for (named, count), rows_of in zip(touched.values(), sets.updates.values(), strict=False):
            if count != named:
                raise MismatchError(applier, "update", applier.keys_of(rows_of), count)
        for (named, count), moved in zip(
            list(touched.values())[len(sets.updates) :], moves.values(), strict=True
        ):
            if count != named:
                raise MismatchError(applier, "update", [key for key, _ in moved], count)
    if sets.inserts:
        applier.insert(sets.inserts)
    changed = sum(map(len, sets.updates.values())) + sum(map(len, sets.moves.values()))
    return len(sets.deletes) + len(sets.inserts) + changed


def apply_lenient(
    applier: TableApplier, sets: LenientSets, empty: OwnRows | None
) -> tuple[int, list[list[str]]]:
    """Apply one table's changes before H as upserts and deletes-if-there.

    Returns:
        The number of rows named, and the keys of rows that must be read again (none of which is
        at the target now).
    """
    applier.begin()
    if sets.truncate:
        applier.empty(empty)
    moved = applier.stage_moves(sets.moves)
    keys = _keys_to_go(applier, sets)
    if keys:
        applier.stage_keys(keys)
        applier.delete_staged()
    again: list[list[str]] = []
    for group, (named, count) in applier.change(sets.updates, {}).items():
        if count != named:
            again += applier.staged_but_absent(group)
    for group, (present, named) in moved.items():
        if applier.bring_back(group, present) != named:
            again += applier.without_donor(group)
    if sets.upserts:
        applier.insert(sets.upserts)
    if sets.refetch:
        again += applier.key_texts([key_fields(key) for key in sets.refetch])
    return len(keys) + sum(map(len, sets.updates.values())), again


def _keys_to_go(applier: TableApplier, sets: LenientSets) -> list[KeyFields]:
    """All keys that must be free before rows are put in."""
    keys = [key_fields(key) for key in chain(sets.deletes, sets.refetch)]
    keys += applier.keys_of(sets.upserts)
    for moves in sets.moves.values():
        keys += applier.keys_of([row for _, row in moves])
    return keys
