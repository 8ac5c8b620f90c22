"""Raises sequences where writers are about to go, so that no number is given out twice.

Sequences are not in the log, and ``nextval`` is not fenced (datapath rule 23): a session may have
drawn numbers from the closing side that it has not written yet, or draw some more. So the opening
side starts past everything the closing side has reached, past the largest value in the column, and
past a margin of ``cache x increment``; always in the sequence's own direction, and only ever
forward. A value in the column that leaves no numbers after it, such as a row with the largest id of
its type, is not counted: the closing side does not mind it either. A sequence that the closing side
has used up stays used up, and one that cycles begins again.

Each shard gives out the numbers of a *class* of its own: every m-th number, from a residue. The
opening shards share what the closing ones gave out, less what shards that stay give out: of the
free classes the widest is divided among them, so the increment becomes ``n x`` its modulus. One
sequence that gave out every number, split over n shards, leaves each every n-th; put together again
they leave one that gives out every number. No two shards give out the same, whatever splits and
merges went before, as long as they did not before the first.

The decision (:func:`plan`) is pure; the rest reads and sets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import batched
from typing import TYPE_CHECKING, Final

from psycopg import sql

from tidegate.topology.names import TableName

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from psycopg import Connection
    from psycopg.rows import TupleRow

#: The numbers that leave a residue when divided by a modulus: (modulus, residue).
type Class = tuple[int, int]

#: Numbers, in units of the sequence's cache, that are skipped.
MARGIN = 100
#: Classes whose numbers repeat after more than so many are not put together, only divided.
PERIOD_MAX = 2_000
QUERIES_A_UNION: Final = 100


@dataclass(frozen=True)
class SequenceState:
    """One sequence at one shard.

    Attributes:
        column_limit: the largest value of the columns it fills (smallest, counting down) where an
            index knows it; reading a whole table would stretch the pause.
    """

    name: TableName
    increment: int
    minimum: int
    maximum: int
    cache: int
    last_value: int
    is_called: bool
    column_limit: int | None = None
    cycle: bool = False

    @property
    def next_value(self) -> int:
        """What ``nextval`` would return, bounds aside."""
        return self.last_value + (self.increment if self.is_called else 0)

    @property
    def is_used_up(self) -> bool:
        """``nextval`` fails."""
        return not (self.cycle or self.minimum <= self.next_value <= self.maximum)


@dataclass(frozen=True)
class Raise:
    """What one opening sequence is set to.

    Attributes:
        is_called: ``first`` counts as given out; ``exhausted``: so there is no number left, where
            the closing side has some.
    """

    name: TableName
    shard: int  # index in the list of opening shards
    first: int
    increment: int
    is_called: bool = False
    exhausted: bool = False


def plan(
    closing: Sequence[SequenceState],
    opening: Sequence[SequenceState],
    staying: Sequence[SequenceState] = (),
) -> list[Raise]:
    """What each opening sequence of one name must be set to; empty when all are right already.

    Args:
        closing: the sequence at each shard that closes.
        opening: the sequence at each shard that opens, in the order that gives the offsets.
        staying: the sequence at each other shard that goes on serving.
    """
    sign = 1 if closing[0].increment > 0 else -1

    def furthest(values: Iterable[int]) -> int:
        return max(values) if sign > 0 else min(values)

    limits = [s.column_limit for s in (*closing, *opening) if s.column_limit is not None]
    given = furthest([s.next_value - s.increment for s in closing])
    taken = furthest([given, *limits])
    if not _has_room(opening, taken, len(opening) * sign):
        taken = given
    modulus, residue = free_class(closing, staying)
    past = taken + sign * modulus * max(s.cache for s in (*closing, *opening)) * MARGIN
    stride = modulus * len(opening)
    own = [(residue + shard * modulus) % stride for shard in range(len(opening))]
    right = [
        state.increment == sign * stride
        and state.next_value % stride == mine
        and (state.next_value - past) * sign >= 0
        for state, mine in zip(opening, own, strict=True)
    ]
    if all(right):
        return []
    start = furthest([past, *(s.next_value for s in opening)])
    return [
        _within_bounds(
            state,
            taken,
            Raise(state.name, shard, start + (mine - start) * sign % stride * sign, sign * stride),
            used_up=all(each.is_used_up for each in closing),
        )
        for shard, (state, mine) in enumerate(zip(opening, own, strict=True))
    ]


def free_class(closing: Sequence[SequenceState], staying: Sequence[SequenceState]) -> Class:
    """The widest class of numbers that only closing shards give out.

    Where there is none, because shards that stay give out everything anyway, the closing shards'
    own is taken: what was not kept apart before is not now.
    """
    return _widest(tuple(map(_class_of, closing)), tuple(map(_class_of, staying)))


@lru_cache(maxsize=1024)
def _widest(given: tuple[Class, ...], kept: tuple[Class, ...]) -> Class:
    period = math.lcm(*(modulus for modulus, _ in (*given, *kept)))
    if period > PERIOD_MAX:
        apart = [each for each in given if not any(_meet(each, other) for other in kept)]
        return min(apart or given)
    free = {
        number
        for modulus, residue in given
        for number in range(residue, period, modulus)
        if not any(number % m == r for m, r in kept)
    }
    for modulus in range(1, period + 1):
        if period % modulus == 0:
            for residue in range(modulus):
                if all(number in free for number in range(residue, period, modulus)):
                    return modulus, residue
    return min(given)


def _class_of(state: SequenceState) -> Class:
    modulus = abs(state.increment)
    return modulus, state.next_value % modulus


def _meet(one: Class, other: Class) -> bool:
    """Some number is in both classes."""
    return (one[1] - other[1]) % math.gcd(one[0], other[0]) == 0


def _has_room(opening: Sequence[SequenceState], taken: int, step: int) -> bool:
    return all(s.minimum <= taken + step <= s.maximum for s in opening)


def _within_bounds(state: SequenceState, taken: int, wanted: Raise, *, used_up: bool) -> Raise:
    """Give up the margin near the end of the type; never go back below what was taken."""
    if state.minimum <= wanted.first <= state.maximum:
        return wanted
    bound, other = state.maximum, state.minimum
    if wanted.increment < 0:
        bound, other = other, bound
    room = (bound - taken) // wanted.increment
    if room < 1 and state.cycle:
        first = other + (wanted.first - other) % wanted.increment
        return replace(wanted, first=first)
    if room < 1:
        return replace(wanted, first=bound, is_called=True, exhausted=not used_up)
    back = -(-abs(wanted.first - bound) // abs(wanted.increment))
    return replace(wanted, first=wanted.first - back * wanted.increment)


_SEQUENCES = """
WITH wanted AS (
  SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN unnest(%s::text[], %s::text[]) AS w(schema, name)
      ON w.schema = n.nspname AND w.name = c.relname
), use(sequence, tbl, attnum) AS (
  SELECT d.objid, d.refobjid, d.refobjsubid FROM pg_depend d
   WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
     AND d.objsubid = 0 AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
     AND d.refobjid IN (SELECT oid FROM wanted)
   UNION
  SELECT d.refobjid, ad.adrelid, ad.adnum FROM pg_depend d
    JOIN pg_attrdef ad ON ad.oid = d.objid
   WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass
     AND d.deptype = 'n' AND ad.adrelid IN (SELECT oid FROM wanted)
)
SELECT n.nspname::text, c.relname::text, s.seqincrement, s.seqmin, s.seqmax, s.seqcache,
       tn.nspname::text, t.relname::text, a.attname::text,
       EXISTS (SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
                 JOIN pg_am am ON am.oid = x.relam
                WHERE i.indrelid = use.tbl AND i.indkey[0] = use.attnum AND i.indisvalid
                  AND i.indpred IS NULL AND am.amname = 'btree'), s.seqcycle
  FROM use
  JOIN pg_sequence s ON s.seqrelid = use.sequence
  JOIN pg_class c ON c.oid = s.seqrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_class t ON t.oid = use.tbl
  JOIN pg_namespace tn ON tn.oid = t.relnamespace
  JOIN pg_attribute a ON a.attrelid = use.tbl AND a.attnum = use.attnum
 UNION ALL
SELECT n.nspname::text, c.relname::text, s.seqincrement, s.seqmin, s.seqmax, s.seqcache,
       '', '', '', false, s.seqcycle
  FROM pg_sequence s
  JOIN pg_class c ON c.oid = s.seqrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN unnest(%s::text[], %s::text[]) AS w(schema, name)
    ON w.schema = n.nspname AND w.name = c.relname
 ORDER BY 1, 2, 7, 8
"""


def read_sequences(
    connection: Connection[TupleRow],
    tables: Iterable[TableName],
    more: Iterable[TableName] = (),
) -> dict[TableName, SequenceState]:
    """The sequences that fill columns of the tables, owned or not, and more by their own names.

    A few round trips. A sequence of ``more`` that is not there is left out.
    """
    names, others = list(tables), list(more)
    parts = [[each.schema for each in names], [each.name for each in names]]
    parts += [[each.schema for each in others], [each.name for each in others]]
    rows = connection.execute(_SEQUENCES, parts).fetchall()
    if not rows:
        return {}
    queries, limits = [], []
    facts: dict[TableName, tuple[int, int, int, int, bool]] = {}
    for row in rows:
        name = TableName(row[0], row[1])
        sequence = sql.Identifier(name.schema, name.name)
        if name not in facts:
            queries.append(
                sql.SQL("SELECT {}, {}, last_value, is_called FROM {}").format(
                    sql.Literal(name.schema), sql.Literal(name.name), sequence
                )
            )
        facts[name] = (row[2], row[3], row[4], row[5], row[10])
        if row[9]:
            limits.append(
                sql.SQL("SELECT {}, {}, {}({})::int8, NULL::bool FROM {}").format(
                    sql.Literal(name.schema),
                    sql.Literal(name.name),
                    sql.SQL("max" if row[2] > 0 else "min"),
                    sql.Identifier(row[8]),
                    sql.Identifier(row[6], row[7]),
                )
            )
    values: dict[TableName, tuple[int, bool]] = {}
    largest: dict[TableName, list[int]] = {}
    for schema, own_name, value, called in _united(connection, queries + limits):
        if called is not None:
            values[TableName(schema, own_name)] = (value, called)
        elif value is not None:
            largest.setdefault(TableName(schema, own_name), []).append(value)
    states = {}
    for name, (increment, minimum, maximum, cache, cycle) in facts.items():
        known = largest.get(name)
        limit = (max(known) if increment > 0 else min(known)) if known else None
        states[name] = SequenceState(
            name,
            increment,
            minimum,
            maximum,
            cache,
            *values[name],
            column_limit=limit,
            cycle=cycle,
        )
    return states


def _united(
    connection: Connection[TupleRow], queries: Sequence[sql.Composable]
) -> Iterator[TupleRow]:
    """The rows of all queries; the server's time to plan a union grows faster than its parts."""
    for few in batched(queries, QUERIES_A_UNION, strict=False):
        yield from connection.execute(sql.SQL(" UNION ALL ").join(few))


def raise_past(
    closing: Sequence[Connection[TupleRow]],
    opening: Sequence[Connection[TupleRow]],
    tables: Sequence[TableName],
    *,
    staying: Sequence[Mapping[TableName, SequenceState]] = (),
    more: Sequence[TableName] = (),
) -> list[Raise]:
    """Set the opening side's sequences; may be repeated, and then changes nothing more.

    Args:
        closing: one session for each shard that closes.
        opening: one session for each shard that opens; their order gives the offsets, so it must
            be the same at every call of one switch.
        tables: whose sequences.
        staying: the sequences of each other shard that goes on serving, read at any time before.
        more: sequences that no column of the tables draws from.

    Returns:
        What was set. A sequence that the opening side lacks is left out.

    Raises:
        psycopg.errors.LockNotAvailable: somebody at the opening side holds a sequence for longer
            than the session's lock_timeout.
    """
    before = [read_sequences(session, tables, more) for session in closing]
    after = [read_sequences(session, tables, more) for session in opening]
    names = sorted({name for states in before for name in states})
    raises = []
    for name in names:
        if all(name in states for states in after):
            raises += plan(
                [states[name] for states in before if name in states],
                [states[name] for states in after],
                [states[name] for states in staying if name in states],
            )
    for shard, session in enumerate(opening):
        own = [r for r in raises if r.shard == shard]
        if own:
            with session.transaction():
                _set(session, own, after[shard])
    return raises


def _set(
    session: Connection[TupleRow],
    wanted: Sequence[Raise],
    now: Mapping[TableName, SequenceState],
) -> None:
    for one in wanted:
        if one.increment != now[one.name].increment:
            session.execute(
                sql.SQL("ALTER SEQUENCE {} INCREMENT BY {}").format(
                    sql.Identifier(one.name.schema, one.name.name),
                    sql.Literal(one.increment),
                )
            )
    names = [sql.Identifier(r.name.schema, r.name.name).as_string(session) for r in wanted]
    session.execute(
        "SELECT setval(w.name::regclass, w.value, w.called)"
        " FROM unnest(%s::text[], %s::int8[], %s::bool[]) AS w(name, value, called)",
        [names, [r.first for r in wanted], [r.is_called for r in wanted]],
    )
