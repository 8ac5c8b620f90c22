"""The statements of one target table in one session, inside the caller's transaction.

Rows are staged, then joined with the table by its key; each method says how many rows it touched,
and :mod:`tidegate.engines.postgres.apply` decides what that means. Where several source shards feed
the table, a statement finds rows of the stream's own source shard only (datapath rule 4). Nothing
here commits.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg
from psycopg import sql

from tidegate.engines.changes import unpacked
from tidegate.engines.postgres import rows
from tidegate.engines.postgres.emptying import delete_own
from tidegate.engines.rowsets import key_fields, key_getter
from tidegate.errors import DivergenceError, SchemaChangedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tidegate.engines.changes import AnyRow
    from tidegate.engines.postgres.apply_tables import Stage, TargetTable
    from tidegate.engines.postgres.emptying import OwnRows
    from tidegate.engines.rowsets import Present

type KeyFields = tuple[bytes, ...]

#: What a statement raises that finds a key or a unique value taken.
TAKEN = (psycopg.errors.UniqueViolation, psycopg.errors.ExclusionViolation)

#: Where the server says that a value was.
_COLUMN: Final = re.compile(r"line [0-9]+, column (.+?)(?:: |$)", re.MULTILINE)

#: Keys named in a message.
KEYS_NAMED_MAX = 10

STAGED_TABLES_MAX: Final = 64
"""Each COMMIT empties every temporary table of the session; so many tables may have some."""


def all_committed(appliers: Iterable[TableApplier]) -> None:
    """The transaction is over; tables that were not changed for longest give their stages up."""
    staged = [applier for applier in appliers if applier.has_stages]
    for applier in staged:
        applier.committed()
    if len(staged) > STAGED_TABLES_MAX:
        staged.sort(key=lambda applier: applier.used_at)
        for applier in staged[: len(staged) - STAGED_TABLES_MAX // 2]:
            applier.drop_stages()


class CollisionError(Exception):
    """A row finds its key or a unique value taken, perhaps by a row of another source shard.

    Streams of several source shards have no order between them: an application that deletes a row
    on one shard and inserts it on another may be seen in the other order. The transaction must go
    back, and be applied leniently.
    """

    def __init__(self, table: str) -> None:
        super().__init__(table)
        self.table = table


class Touched(NamedTuple):
    """What became of a group of changed rows."""

    named: int
    found: int  # and there now
    lost: int  # found, and gone: another row has their place


class TableApplier:
    """The statements of one target table in one session.

    Args:
        conn: a session on the target.
        table: the table there.
        binary: whether rows arrive in binary.
        shared: streams of other source shards write to the table, too.
        own: which rows are this stream's, where the key alone does not tell.
    """

    def __init__(
        self,
        conn: psycopg.Connection,
        table: TargetTable,
        *,
        binary: bool,
        shared: bool = False,
        own: OwnRows | None = None,
    ) -> None:
        self._conn = conn
        self.shared = shared
        self._own = own
        self.table = table
        self._table = table
        self._binary = binary
        self._format = sql.SQL("(FORMAT {})").format(sql.SQL("binary" if binary else "text"))
        self._all = tuple(range(len(table.columns)))
        self._key = key_getter(table.key)
        self._groups = 0
        self._staged: dict[str, sql.Identifier] = {}  # stages this transaction has filled
        self._made: set[Stage] = set()
        self._made_now: set[Stage] = set()  # by this transaction
        self.used_at = 0.0

    @property
    def name(self) -> str:
        """Of the table."""
        return str(self._table.name)

    @property
    def has_stages(self) -> bool:
        """It has temporary tables in the session."""
        return bool(self._made)

    def _need(self, stage: Stage) -> None:
        """Make the stage unless the session has it."""
        self.used_at = time.monotonic()
        if stage not in self._made:
            for statement in self._table.stage_statements(stage):
                self._conn.execute(statement)
            self._made.add(stage)
            self._made_now.add(stage)

    def drop_stages(self) -> None:
        """Give the temporary tables up; outside of a transaction."""
        table = self._table
        stages = {"key": [table.key_stage], "row": [table.row_stage, table.donor_stage]}
        dropped = [each for name in sorted(self._made) for each in stages[name]]
        self._conn.execute(sql.SQL("DROP TABLE {}").format(sql.SQL(", ").join(dropped)))
        self._made.clear()

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
        self._made_now.clear()

    def rolled_back(self) -> None:
        """The transaction was undone, and with it the stages it made."""
        self._made -= self._made_now
        self.committed()

    def _copy(self, target: sql.Composable, columns: sql.Composable, data: bytes) -> int:
        statement = sql.SQL("COPY {} ({}) FROM STDIN {}").format(target, columns, self._format)
        with self._conn.cursor() as cursor:
            try:
                with cursor.copy(statement) as copy:
                    copy.write(data)
            except psycopg.DataError as error:
                raise self._does_not_fit(
                    error, staged=target is not self._table.relation
                ) from error
            return cursor.rowcount

    def _does_not_fit(self, error: psycopg.DataError, *, staged: bool) -> SchemaChangedError:
        """A value that the source took and the target's type does not: a label of an enum, say."""
        found = _COLUMN.search(error.diag.context or "")
        name = "" if found is None else found[1]
        if staged and name.startswith("c"):
            name = self._table.columns[int(name[1:])].name
        where = f" in column {name}" if name else ""
        said = error.diag.message_primary or str(error)
        return SchemaChangedError(
            f"a value{where} of table {self.name} does not fit the type at the target: {said};"
            " alter the type there as it is at the source, then start the workflow",
            next_step="alter the type at the target as it is at the source, then: tidegate workflow"
            " start",
            table=self.name,
        )

    def _encode(self, values: Iterable[Sequence[Any]], width: int) -> bytes:
        return rows.encode(values, width, binary=self._binary)

    # emptying and deleting

    def empty(self, own: OwnRows | None) -> None:
        """Remove all rows, or those of one source shard."""
        if own is not None:
            delete_own(self._conn, self._table.relation, own)
            return
        assert not self.shared, "only the rows of one source shard may go"
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
        self._need("key")
        self._staged["key"] = self._table.key_stage
        names = [sql.Identifier(f"k{n}") for n in range(len(self._table.key))]
        data = self._encode(keys, len(self._table.key))
        self._copy(self._table.key_stage, sql.SQL(", ").join(names), data)

    def delete_staged(self) -> int:
        """Delete the stream's rows whose keys are staged; says how many there were."""
        return self._conn.execute(
            sql.SQL("DELETE FROM ONLY {} AS t USING {} AS s WHERE {} AND {}").format(
                self._table.relation,
                self._table.key_stage,
                self._table.matches("k"),
                self._own_rows(self._table.key_stage, self._table.matches("k")),
            )
        ).rowcount

    def _own_rows(self, stage: sql.Composable, where: sql.Composable) -> sql.Composable:
        """What keeps a statement on staged keys to rows whose home is the stream's source shard.

        It is part of the statement itself: rows of other homes come and go at any time. A row of
        our own home changes by this transaction only, so its place tells it as well as its values.
        """
        if self._own is None:
            return sql.SQL("true")
        if self._own.condition is not None:
            return self._own.condition
        found = self._conn.execute(
            sql.SQL("SELECT t.ctid::text, {} FROM ONLY {} AS t, {} AS s WHERE {}").format(
                self._own.routing.sent_values(), self._table.relation, stage, where
            )
        ).fetchall()
        owned = self._own.are_own([row[1] for row in found])
        places = [row[0] for row, is_own in zip(found, owned, strict=True) if is_own]
        return sql.SQL("t.ctid = ANY ({}::tid[])").format(sql.Literal(places))

    def _in_group(self, group: int, prefix: str) -> sql.Composable:
        """Rows of the table that a group of staged rows names, by a key of theirs."""
        named = sql.SQL("s.g = {} AND {}").format(sql.Literal(group), self._table.matches(prefix))
        own = self._own_rows(self._table.row_stage, named)
        return sql.SQL("{} AND {}").format(named, own)

    # changing rows

    def stage_rows(
        self,
        present: Present,
        changed: Sequence[AnyRow],
        origins: Sequence[KeyFields] | None = None,
    ) -> int:
        """Put rows on the row stage as a group of their own; returns the group's number."""
        self._need("row")
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
            " WHERE {named} AND {condition} RETURNING {kept})"
            " INSERT INTO {donors} ({names}) SELECT * FROM gone"
        ).format(
            table=table.relation,
            stage=table.row_stage,
            named=self._in_group(group, "o" if moves else "c"),
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
        where = self._in_group(group, "c")
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

    def bring_back(self, group: int, present: Present, *, yielding: bool = False) -> int:
        """Insert the group's rows that were taken out, with donors' values where they lack any.

        ``yielding``: rows whose place another row has are passed over. Says how many came back.
        """
        table = self._table
        carried = set(present)
        values = [
            sql.SQL("{}.{}").format(sql.SQL("s" if i in carried else "d"), sql.Identifier(f"c{i}"))
            for i in self._all
        ]
        query = sql.SQL(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE"
            " SELECT {} FROM {} AS d, {} AS s WHERE s.ctid = d.at AND s.g = {} {}"
        ).format(
            table.relation,
            table.names(self._all),
            sql.SQL(", ").join(values),
            table.donor_stage,
            table.row_stage,
            sql.Literal(group),
            table.unless_taken() if yielding else sql.SQL(""),
        )
        return self._conn.execute(query).rowcount

    def change(
        self,
        updates: Mapping[Present, Sequence[AnyRow]],
        moves: Mapping[Present, Sequence[tuple[KeyFields, AnyRow]]],
        *,
        yielding: bool = False,
    ) -> dict[int, Touched]:
        """Apply updates and moves of a table together.

        Returns:
            What became of each group, in the order of ``updates`` then ``moves``. With
            ``yielding`` a row that finds its place taken is lost, not an error.
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
        lost = dict.fromkeys(named, 0)
        for group, (present, is_move, _) in named.items():
            if not is_move:
                touched[group] += self.update(group, present)
        for group, (present, _, _) in named.items():
            if out[group]:
                lost[group] = out[group] - self.bring_back(group, present, yielding=yielding)
        return {
            group: Touched(named[group][2], touched[group] - lost[group], lost[group])
            for group in named
        }

    def stage_moves(
        self, moves: Mapping[Present, Sequence[tuple[KeyFields, AnyRow]]]
    ) -> dict[int, tuple[Present, int, int]]:
        """Take out the rows that move, as far as they are there.

        Returns:
            For each group its columns, rows named, rows taken out.
        """
        groups = {}
        for present, moved in moves.items():
            origins = [key_fields(key) for key, _ in moved]
            group = self.stage_rows(present, [row for _, row in moved], origins)
            groups[group] = (present, len(moved), self.take_out(group, present, moves=True))
        return groups

    def unwritten(self, group: int) -> list[list[str]]:
        """Keys of a group of moves or inserts that this transaction has written no row of."""
        written = sql.SQL("{} AND t.xmin = pg_current_xact_id()::xid").format(
            self._table.matches("c")
        )
        return self._keys_without(group, written)

    def staged_but_absent(self, group: int) -> list[list[str]]:
        """Keys of a group of updates that no row of the stream has."""
        return self._keys_without(group, self._in_group(group, "c"))

    def _keys_without(self, group: int, condition: sql.Composable) -> list[list[str]]:
        """Keys of a group for which no row of the table meets a condition."""
        table = self._table
        query = sql.SQL(
            "SELECT {} FROM {} AS s WHERE s.g = {} AND NOT EXISTS (SELECT FROM ONLY {} AS t"
            " WHERE {})"
        ).format(
            table.key_text("c"), table.row_stage, sql.Literal(group), table.relation, condition
        )
        return [row[0] for row in self._conn.execute(query)]

    def insert_where_free(self, new: Sequence[AnyRow]) -> tuple[int, list[list[str]]]:
        """Insert full rows, but for those whose place the row of another source shard has.

        Returns:
            How many were inserted, and the keys of the others.
        """
        group = self.stage_rows(self._all, new)
        query = sql.SQL(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} AS s WHERE s.g = {} {}"
        ).format(
            self._table.relation,
            self._table.names(self._all),
            sql.SQL(", ").join(sql.Identifier("s", f"c{i}") for i in self._all),
            self._table.row_stage,
            sql.Literal(group),
            self._table.unless_taken(),
        )
        count = self._conn.execute(query).rowcount
        return count, [] if count == len(new) else self.unwritten(group)

    def insert(self, new: Sequence[AnyRow]) -> None:
        """Insert full rows by COPY.

        Raises:
            CollisionError: the row of another source shard may be in the way.
            DivergenceError: one is there already, or another unique value is taken.
        """
        data = rows.encode_full(new, len(self._all), binary=self._binary)
        try:
            self._copy(self._table.relation, self._table.names(self._all), data)
        except TAKEN as error:
            if self.shared:
                raise CollisionError(self.name) from error
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
